"""The public API as pyright in strict mode sees it from outside the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mpcore

FOLDER = Path(__file__).parents[1] / "typing"
PACKAGE = str(Path(__file__).parents[2] / "python")
PROGRAM = FOLDER / "public_api.py"


def pyright(folder: Path) -> dict[str, Any]:
    """The report on the files of a folder, which holds a pyrightconfig.json."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "-p", str(folder), "--pythonpath", sys.executable]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    return found


def test_pyright_strict_accepts_a_program_that_uses_every_public_name() -> None:
    found = pyright(FOLDER)
    assert found["summary"]["filesAnalyzed"] == 1
    assert found["generalDiagnostics"] == []


def test_the_program_uses_every_public_name() -> None:
    exports = (Path(mpcore.__file__)).read_text(encoding="utf-8")
    public = set(re.findall(r"import \w+ as (\w+)$", exports, re.MULTILINE))
    assert {"prune", "fit_edge", "verify", "mp", "__version__"} <= public
    text = PROGRAM.read_text(encoding="utf-8")
    assert {name for name in public if not re.search(rf"\bmpcore\.{name}\b", text)} == set()


def test_pyright_objects_to_a_wrong_call(tmp_path: Path) -> None:
    config = json.loads((FOLDER / "pyrightconfig.json").read_text())
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config | {"extraPaths": [PACKAGE]}))
    (tmp_path / "public_api.py").write_text(
        "import mpcore\nprint(mpcore.fit_edge([[1.0]], method=3).edge.upper())\nmpcore.no_such_name\n"
    )
    rules = [entry["rule"] for entry in pyright(tmp_path)["generalDiagnostics"]]
    assert {"reportArgumentType", "reportAttributeAccessIssue"} <= set(rules)
