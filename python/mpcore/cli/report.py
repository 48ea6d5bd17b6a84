"""``mpcore report``: report.html from the records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpcore.cli.options import Json, NoSeed, Quiet, RunFolder
from mpcore.cli.session import session
from mpcore.folder import MANIFEST, unfinished


def report(
    run: RunFolder,
    json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write; left out, RUN/report.html.")
    ] = None,
    quiet: Quiet = False,
    seed: NoSeed = 0,
) -> None:
    """Write one self-contained HTML page from the records of a run; writing it again changes nothing."""
    with session(json=json, quiet=quiet) as console:
        from mpcore.report import render

        if not (run / MANIFEST).is_file():
            raise FileNotFoundError(unfinished(run))
        page = render(run, out=out)
        console.emit({"report": str(page), "bytes": page.stat().st_size}, str(page))
