"""The run folder: who may write into it, what an interrupted run left there, and how it is sealed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mpcore.checkpoint import open_weights, save_tensors, sha256
from mpcore.records import FORMAT, Manifest, PlannedLayer, Record, atomic, from_plain, to_plain

RUN, MANIFEST, PROGRESS = "run.json", "manifest.json", "progress"


class RunFolder:
    """A folder that belongs to one run: one model, recipe, seed and calibration set (its *fingerprint*).

    Opening an existing folder resumes it if the fingerprint is the same. Without a path the folder is a temporary
    one and goes with this object.

    Raises:
        ValueError: if the folder holds another run, naming what differs, or files that are none of ours.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: dict[str, Any]) -> None:
        if path is None:
            path = tempfile.mkdtemp(prefix="mpcore-run-")
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        self.path: Path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: is a file, wanted a folder for the run")
        self.path.mkdir(parents=True, exist_ok=True)
        self._claim(fingerprint)

    def _claim(self, fingerprint: dict[str, Any]) -> None:
        mark = self.path / RUN
        if mark.exists():
            found = read_json(mark).get("fingerprint", {})
            for key in sorted({*fingerprint, *found}):
                if found.get(key) != fingerprint.get(key):
                    difference = f"{key} was {found.get(key)!r}, now {fingerprint.get(key)!r}"
                    raise ValueError(f"{self.path}: holds another run ({difference}); choose another folder")
            return
        if strangers := sorted(entry.name for entry in self.path.iterdir() if not entry.name.endswith(".partial")):
            raise ValueError(
                f"{self.path}: exists and is no run of mpcore (it holds {strangers[0]!r}); choose another folder"
            )
        write_text(mark, json.dumps({"format": FORMAT, "kind": "run", "fingerprint": fingerprint}, indent=1) + "\n")

    @property
    def finished(self) -> bool:
        """Whether the run was sealed."""
        return (self.path / MANIFEST).exists()

    def once(self, name: str, kind: type[Record], make: Callable[[], Record]) -> Any:
        """The record in file ``name`` if an earlier session wrote it, else what ``make`` returns, written."""
        path = self.path / name
        if path.exists():
            return kind.read(path)
        record = make()
        record.write(path)
        return record

    def store_layer(self, index: int, plan: PlannedLayer, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        """Keep one finished layer for a resumed run."""
        record = json.dumps(to_plain(plan))
        save_tensors(self._layer_file(index), tensors, {"plan": record})

    def stored_layer(self, index: int) -> tuple[PlannedLayer, dict[str, np.ndarray[Any, Any]]] | None:
        """What :meth:`store_layer` kept, or None."""
        path = self._layer_file(index)
        if not path.exists():
            return None
        weights = open_weights(path)
        plan = from_plain(PlannedLayer, json.loads(weights.metadata["plan"]), "plan")
        return plan, {name: np.array(weights[name]) for name in weights}

    def _layer_file(self, index: int) -> Path:
        return self.path / PROGRESS / f"{index:04d}.safetensors"

    def clear_progress(self) -> None:
        """Drop what only a resumed run needs."""
        shutil.rmtree(self.path / PROGRESS, ignore_errors=True)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file the manifest vouches for: all but itself, the report and the unfinished."""
    left_out = {MANIFEST, "report.html"}
    files = (entry for entry in sorted(folder.iterdir()) if entry.is_file() and entry.name not in left_out)
    return {entry.name: sha256(entry) for entry in files if not entry.name.endswith(".partial")}


def renew_manifest(folder: Path) -> None:
    """Hash the files again after a stage added or replaced some."""
    manifest = Manifest.read(folder / MANIFEST)
    dataclasses.replace(manifest, files=hashes(folder)).write(folder / MANIFEST)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; a ValueError names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON document ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, wanted an object")
    return data


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
