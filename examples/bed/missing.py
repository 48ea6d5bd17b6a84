"""Where packaged files lie, and the one error for files that are not there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache"
"""What ``examples/setup.py`` unpacks: one folder per Debian package, with the package's own tree inside."""


class MissingData(FileNotFoundError):
    """A package of the test bed is absent; the message names it and the command that brings it."""

    def __init__(self, package: str, wanted: str | Path) -> None:
        super().__init__(f"{package}: {wanted} is missing; run 'make examples'")
        self.package = package


def in_python_package(distribution: str, module: str, *, path: str) -> Path:
    """A file or folder that the installed package ``module`` ships; the package is not imported.

    Args:
        distribution: name on the package index, for the error.
        module: import name of the package.
        path: path inside the package's folder.

    Raises:
        MissingData: if the package or the path is absent.
    """
    spec = find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(folder, path)).exists():
            return found
    raise MissingData(distribution, f"{module}/{path}")


def in_debian_package(package: str, *, path: str) -> Path:
    """A file or folder of a Debian package, installed on the system or unpacked by ``examples/setup.py``.

    Args:
        package: name of the Debian package.
        path: path below the file system's root, without the leading slash.

    Raises:
        MissingData: if neither place has it.
    """
    for root in (Path("/"), CACHE / package):
        if (root / path).exists():
            return root / path
    raise MissingData(package, f"/{path}")
