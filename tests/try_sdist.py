"""Build a wheel from an sdist alone, as pip does where there is no wheel for a platform, and use it.

Usage: ``python tests/try_sdist.py dist/mpcore-*.tar.gz``; needs uv and Rust; the build is isolated.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from try_wheel import python_of, use

NEEDED = ("Cargo.lock", "LICENSE-MIT", "THIRD-PARTY.md", "pyproject.toml", "release/mpcore.cyclonedx.json")


def main(sdist: str) -> int:
    """0 if the sdist holds what it must and its wheel works."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if missing := [name for name in NEEDED if name not in names]:
        print(f"{sdist}: lacks {', '.join(missing)}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder], check=True)
        python = python_of(Path(folder))
        command = ["uv", "pip", "install", "--quiet", "--python", python, "--no-binary", "mpcore", sdist]
        subprocess.run(command, check=True)
        return use(python, folder)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
