"""Build the wheel twice, in two folders of unlike names, from the files git knows, and compare the bytes.

Usage: ``python tests/try_reproducible.py``; two builds from nothing. Exit code 1 if a byte differs; it says where.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy(to: Path) -> None:
    """What git tracks, or would; each file as it is here, with the times of now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def epoch() -> str:
    """Time of the last commit."""
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "315532800"


def build(folder: Path, when: str) -> Path:
    """The wheel that release/build.py makes of the copy in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
    command = [sys.executable, "release/build.py", "made"]
    subprocess.run(command, cwd=folder, env={**kept, "SOURCE_DATE_EPOCH": when}, check=True)
    return next((folder / "made").glob("*.whl"))


def members(wheel: Path) -> dict[str, str]:
    """Name -> place, time, mode and SHA-256 of every file in the archive."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            entry.filename: f"place {place}, {entry.date_time}, mode {entry.external_attr >> 16:o}, "
            f"{hashlib.sha256(archive.read(entry)).hexdigest()}"
            for place, entry in enumerate(archive.infolist())
        }


def main() -> int:
    """0 if the two wheels are the same file."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory(prefix="another-name-") as second:
        wheels, when, folders = [], epoch(), (Path(first), Path(second) / "deeper")
        for folder in folders:
            copy(folder)
        for folder in folders:
            began = time.monotonic()
            wheels.append(build(folder, when))
            print(f"{wheels[-1].name}: built in {time.monotonic() - began:.0f} s", flush=True)
        contents = [wheel.read_bytes() for wheel in wheels]
        if contents[0] == contents[1]:
            print(f"the same {len(contents[0])} bytes, sha256 {hashlib.sha256(contents[0]).hexdigest()}")
            return 0
        one, other = (members(wheel) for wheel in wheels)
        for name in sorted({*one, *other}):
            if one.get(name) != other.get(name):
                print(f"differs: {name}: {one.get(name, 'missing')} | {other.get(name, 'missing')}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
