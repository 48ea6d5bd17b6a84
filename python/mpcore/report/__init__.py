"""report.html: one self-contained page about a run, from its records alone."""

from __future__ import annotations

import os
from pathlib import Path

from mpcore.records import atomic


def render(folder: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a finished run and return its path; the same records give the same bytes.

    Needs jinja2 (``pip install 'mpcore[report]'``). The page loads nothing from anywhere.

    Args:
        folder: the run folder.
        out: the page; None is ``report.html`` in the folder.

    Raises:
        FileNotFoundError: if the folder holds no finished run.
        ValueError: if a record is corrupt; names the file.
    """
    from mpcore.report.page import page
    from mpcore.report.records import read_run

    target = Path(folder) / "report.html" if out is None else Path(out)
    text = page(read_run(folder))
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target
