"""Write THIRD-PARTY.md: every crate compiled into the wheel, its licence and the texts it asks us to pass on.

Usage: ``python release/licences.py``; needs cargo. Exit code 1 if a licence is not within ``deny.toml``'s list.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "THIRD-PARTY.md"
_TEXTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE")
_HEAD = """# Third-party crates

The extension module of the wheel contains the crates below, some of them on some platforms only; `make licences` makes
this list. mpcore itself is under Apache-2.0 or MIT, as you like. Of crates under a choice of licences we take MIT.
"""


def metadata() -> dict[str, Any]:
    """What ``cargo metadata`` says of the workspace."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compiled_in(found: dict[str, Any], root: str = "mpcore-py") -> list[dict[str, Any]]:
    """The packages that ``root`` links, on any platform: no build scripts, no macros, nothing that only tests need."""
    packages = {package["id"]: package for package in found["packages"]}
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    waiting, linked = [key for key, package in packages.items() if package["name"] == root], set()
    while waiting:
        key = waiting.pop()
        macro = any("proc-macro" in target["kind"] for target in packages[key]["targets"])
        if key in linked or macro:
            continue
        linked.add(key)
        for dependency in nodes[key]["deps"]:
            if any(kind["kind"] is None and kind["target"] != "cfg(loom)" for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    ours = set(found["workspace_members"])
    return sorted((packages[key] for key in linked - ours), key=lambda package: (package["name"], package["version"]))


def satisfied(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met with the licences allowed.

    Example:
        >>> satisfied("(MIT OR GPL-3.0) AND Unicode-3.0", {"MIT", "Unicode-3.0"}), satisfied("GPL-3.0", {"MIT"})
        (True, False)
    """
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either() -> bool:
        value = both()
        while words and words[0] == "OR":
            words.pop(0)
            other = both()
            value = value or other
        return value

    def both() -> bool:
        value = one()
        while words and words[0] == "AND":
            words.pop(0)
            other = one()
            value = value and other
        return value

    def one() -> bool:
        word = words.pop(0)
        if word == "(":
            value = either()
            words.pop(0)
            return value
        if words and words[0] == "WITH":
            word = f"{word} WITH {words[1]}"
            del words[:2]
        return word in allowed

    return either()


def texts(package: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and content of the licence files a crate ships; under a choice that has MIT, those of MIT."""
    folder = Path(package["manifest_path"]).parent
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and entry.name.upper().startswith(_TEXTS))
    if any("MIT" in entry.name.upper() for entry in files):
        files = [entry for entry in files if not re.search("APACHE|UNLICENSE|ZLIB|COPYING$", entry.name.upper())]
    return [(entry.name, entry.read_text(encoding="utf-8", errors="replace").strip()) for entry in files]


def document(packages: list[dict[str, Any]]) -> str:
    """The whole file: a table, then each different text once with the crates that ship it."""
    rows = [f"| {p['name']} | {p['version']} | {p['license']} | {p['repository'] or ''} |" for p in packages]
    table = "\n".join(["| crate | version | licence | source |", "| --- | --- | --- | --- |", *rows])
    users: dict[str, list[str]] = defaultdict(list)
    for package in packages:
        for name, text in texts(package):
            users["\n".join(line.rstrip() for line in text.splitlines())].append(f"{package['name']} ({name})")
    parts = [f"## {', '.join(names)}\n\n~~~~text\n{text}\n~~~~" for text, names in users.items()]
    return "\n".join([_HEAD, table, "", "\n\n".join(parts)]) + "\n"


def main() -> int:
    """Number of crates whose licence is not allowed."""
    packages = compiled_in(metadata())
    allowed = set(tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))["licenses"]["allow"])
    refused = [package for package in packages if not satisfied(package["license"] or "none", allowed)]
    for package in refused:
        print(f"{package['name']} {package['version']}: {package['license']} is not allowed by deny.toml")
    TARGET.write_text(document(packages), encoding="utf-8")
    print(f"{TARGET.name}: {len(packages)} crates, {len(refused)} refused")
    return len(refused)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
