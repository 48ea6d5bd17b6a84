"""The code of the documentation pages: fenced blocks by page, run in order, and the pictures they leave.

As a program it runs every page that draws, and keeps the pictures in docs/images: ``make pictures``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: the words after the fence, its text, the line it begins on."""

    info: str
    code: str
    line: int

    @property
    def language(self) -> str:
        return self.info.split()[0] if self.info.split() else ""

    @property
    def is_output(self) -> bool:
        """Whether this is what the Python block before it prints."""
        return 'title="prints"' in self.info


def pages() -> list[Path]:
    """README and every page of the site."""
    return [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["info"].strip(), found["code"], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


def commands(page: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every command in the blocks that are not Python, comments taken off."""
    for block in blocks(page):
        if block.language not in ("python", "toml") and not block.is_output:
            for number, line in enumerate(block.code.splitlines(), block.line + 1):
                if command := re.sub(r"\s+#.*", "", line).strip():
                    yield number, command


def run(page: Path, folder: Path) -> list[tuple[int, str, str]]:
    """Run a page's Python blocks in one namespace; (line, printed, promised) of every block with its output shown."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    promises, printed = [], ""
    here = Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks(page):
            if block.language == "python":
                code = compile("\n" * block.line + block.code, str(page), "exec")
                with contextlib.redirect_stdout(io.StringIO()) as stream:
                    exec(code, namespace)
                printed = stream.getvalue()
            elif block.is_output:
                promises.append((block.line, printed, block.code))
    finally:
        os.chdir(here)
    return promises


def main() -> None:
    """Redraw the pictures of the pages."""
    import matplotlib

    matplotlib.use("Agg")
    for page in pages():
        if "savefig(" in "".join(block.code for block in blocks(page) if block.language == "python"):
            with tempfile.TemporaryDirectory() as folder:
                run(page, Path(folder))
                for picture in Path(folder).glob("*.png"):
                    shutil.copy(picture, DOCS / "images")
                    print(f"docs/images/{picture.name}")


if __name__ == "__main__":
    main()
