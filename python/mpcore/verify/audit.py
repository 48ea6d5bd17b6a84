"""What a verification has found so far."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TypeVar

from mpcore.checkpoint import Weights, open_weights
from mpcore.records import Problem, Record

AnyRecord = TypeVar("AnyRecord", bound=Record)


class Audit:
    """Problems found in one run folder, and counts of what was looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.checked: Counter[str] = Counter()
        self._opened: dict[str, Weights | None] = {}

    def add(self, what: str, *, layer: str = "", group: int | None = None) -> None:
        """Note one problem; ``layer`` and ``group`` where it has a place."""
        self.problems.append(Problem(layer, group, what))

    def expect(self, holds: bool, what: str, *, layer: str = "") -> None:
        """Count one claim, and note ``what`` if it does not hold."""
        self.checked["claims"] += 1
        if not holds:
            self.add(what, layer=layer)

    def record(self, kind: type[AnyRecord], name: str, *, missing: str = "") -> AnyRecord | None:
        """Read one record; None, with a problem noted, if it is corrupt, or absent and ``missing`` says why not."""
        path = self.folder / name
        if not path.is_file():
            if missing:
                self.add(f"{name} is missing: {missing}")
            return None
        try:
            record = kind.read(path)
        except (ValueError, OSError) as error:
            self.add(_without(self.folder, error))
            return None
        self.checked["records"] += 1
        return record

    def weights(self, name: str) -> Weights | None:
        """Open one safetensors file; None if absent, and with a problem noted, once, if corrupt."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Weights | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return open_weights(path)
        except (ValueError, OSError) as error:
            self.add(_without(self.folder, error))
            return None


def _without(folder: Path, error: Exception) -> str:
    return str(error).replace(f"{folder}/", "")
