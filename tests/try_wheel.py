"""Install a wheel, with its dependencies but without torch, into every CPython >= 3.10 found here, and use it.

Usage: ``python tests/try_wheel.py dist/mpcore-*.whl``; needs uv. Interpreters are looked for by uv and below pyenv's
folder.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

USE = """
import sys, numpy, mpcore
fit = mpcore.fit_edge(numpy.random.default_rng(0).standard_normal((64, 256)))
assert 20 < fit.edge < 28 and fit.n_spikes == 0, fit
assert "torch" not in sys.modules
try:
    mpcore.prune
except ImportError as error:
    assert "mpcore[torch]" in str(error), error
print(f"CPython {sys.version.split()[0]}, numpy {numpy.__version__}: edge {fit.edge:.3f}")
"""


def interpreters() -> dict[str, str]:
    """Minor version -> path of one interpreter of it."""
    command = ["uv", "python", "list", "--only-installed", "--output-format", "json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    found = {entry["version"]: entry["path"] for entry in listed if entry["implementation"] == "cpython"}
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found |= {Path(path).parents[1].name: path for path in glob.glob(f"{root}/versions/3.*/bin/python")}
    minors = {version.split(".")[1]: path for version, path in sorted(found.items())}
    return {f"3.{minor}": path for minor, path in minors.items() if int(minor) >= 10}


def python_of(environment: Path) -> str:
    """Path of the interpreter of a virtual environment."""
    return str(environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def use(python: str, folder: str) -> int:
    """1 if mpcore does not work in that interpreter, 0 if it does; run outside the checkout."""
    return int(subprocess.run([python, "-c", USE], cwd=folder).returncode != 0)


def lacking(wheel: str) -> list[str]:
    """Licences and bill of materials that the wheel should hold and does not."""
    names = zipfile.ZipFile(wheel).namelist()
    wanted = ("licenses/LICENSE-MIT", "licenses/THIRD-PARTY.md", "sboms/mpcore.cyclonedx.json", "mpcore/py.typed")
    return [ending for ending in wanted if not any(name.endswith(ending) for name in names)]


def main(wheel: str) -> int:
    """Number of interpreters on which the wheel fails, and of files it lacks."""
    for name in (missing := lacking(wheel)):
        print(f"{wheel}: lacks {name}")
    failed = len(missing)
    for path in interpreters().values():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["uv", "venv", "--quiet", "--python", path, folder], check=True)
            python = python_of(Path(folder))
            subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, wheel], check=True)
            failed += use(python, folder)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
