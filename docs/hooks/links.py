"""Link every name of the API that a page writes as code, such as `fit_edge`, to its entry on the API page."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@cache
def entries() -> dict[str, str]:
    """Name as a page may write it -> its full name on the API page."""
    found: dict[str, str] = {}
    for full in re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        file = (ROOT / "python" / full.replace(".", "/")).with_suffix(".py")
        names = [full]
        if file.is_file():
            body = ast.parse(file.read_text(encoding="utf-8")).body
            kinds = (ast.FunctionDef, ast.ClassDef)
            names = [f"{full}.{node.name}" for node in body if isinstance(node, kinds) and node.name[0] != "_"]
        for name in names:
            found.setdefault(name.rpartition(".")[2], name)
            found.setdefault(name, name)
    return found


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Rewrite the text outside headings, blocks and links."""
    if page.file.src_uri == "api.md":
        return markdown
    lines, fenced = [], False
    for line in markdown.split("\n"):
        fenced ^= line.startswith("```")
        lines.append(line if fenced or line.startswith(("#", "```")) else re.sub(r"(?<!\[)`([\w.]+)`", _link, line))
    return "\n".join(lines)


def _link(code: re.Match[str]) -> str:
    target = entries().get(code[1])
    return code[0] if target is None else f"[{code[0]}][{target}]"
