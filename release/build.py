"""Build the wheel, or the sdist, so that the same sources give the same bytes in any folder and at any time.

Usage: ``python release/build.py OUT [--sdist]``; needs maturin beside this interpreter. Times in the archive are
those of the last commit (``SOURCE_DATE_EPOCH`` overrides), and no path of this machine is left in the binary.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG_AGO = "315532800"
"""1980, the first year a zip archive knows; for sources without a git history."""


def output(*command: str) -> str:
    """What a program prints, empty where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> dict[str, str]:
    """The variables that make a build a function of its sources."""
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    prefixes = {str(ROOT): "mpcore", cargo: "cargo", output("rustc", "--print", "sysroot"): "rust"}
    remaps = [f"--remap-path-prefix={path}={name}" for path, name in prefixes.items() if path]
    flags = "\x1f".join([*os.environ.get("RUSTFLAGS", "").split(), *remaps])
    made = {key: value for key, value in os.environ.items() if key != "RUSTFLAGS"}
    made["CARGO_ENCODED_RUSTFLAGS"] = flags
    made["CARGO_TARGET_DIR"] = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target" / "wheel"))
    made["CARGO_INCREMENTAL"] = "0"
    made.setdefault("SOURCE_DATE_EPOCH", output("git", "log", "-1", "--format=%ct") or LONG_AGO)
    return made


def main() -> int:
    """Exit code of maturin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", help="folder for the file")
    parser.add_argument("--sdist", action="store_true", help="the sdist instead of the wheel")
    asked = parser.parse_args()
    maturin = str(Path(sys.executable).with_name("maturin"))
    command = [maturin, "sdist"] if asked.sdist else [maturin, "build", "--release", "--locked", "--quiet"]
    os.umask(0o022)
    return subprocess.run([*command, "--out", asked.out], cwd=ROOT, env=environment()).returncode


if __name__ == "__main__":
    sys.exit(main())
