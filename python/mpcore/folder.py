"""The run folder: who may write into it, what an interrupted run left there, and how it is sealed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mpcore.checkpoint import open_weights, save_tensors, sha256
from mpcore.records import FORMAT, Manifest, PlannedLayer, Record, atomic, from_plain, to_plain

RUN, MANIFEST, PROGRESS, LOCK = "run.json", "manifest.json", "progress", ".lock"
OF_DISTILLATION = ("student.safetensors", "train.jsonl", "certificate-student.json", "eval.json")
"""Files that distillation makes or renews."""

RESERVED = frozenset(
    {RUN, MANIFEST, LOCK, "report.html", "inventory.json", "spectra.json", "budget.json", "plan.json"}
    | {"certificate.json", "speed.json", *OF_DISTILLATION}
)
"""What no file that only goes along may be called in a run folder; weights have endings of their own."""

_BATCHES = "batches differ in inputs, labels, order or size (is the DataLoader shuffling?); "
_MEANS = {
    "model_sha256": "the model's weights differ; ",
    "architecture_sha256": "the model's modules, their settings or their buffers differ; ",
    "checkpoint_sha256": "the checkpoint's files differ in names, shapes or sizes; ",
    "statistics_sha256": "the statistics differ; ",
    "calibration_sha256": f"the calibration {_BATCHES}",
    "evaluation_sha256": f"the evaluation {_BATCHES}",
}
"""What a hash that differs says in words."""


class RunFolder:
    """A folder that belongs to one run: one model, recipe, seed and calibration set (its *fingerprint*).

    Opening an existing folder resumes it if the fingerprint is the same. Until the run is finished the folder is locked
    for this object, until :meth:`release`. Without a path the folder is a temporary one and goes with this object.

    Raises:
        ValueError: if the folder holds another run, naming what differs, files that are none of ours, or if another
            process is at work in it.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: dict[str, Any]) -> None:
        if path is None:
            path = tempfile.mkdtemp(prefix="mpcore-run-")
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        self.path: Path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: is a file, wanted a folder for the run")
        self._new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._unlock: Callable[[], object] = lambda: None
        if not self.finished:
            self._refuse_strangers()
            self._unlock = weakref.finalize(self, lock(self.path))
            sweep(self.path)
        self._claim(fingerprint)

    def release(self) -> None:
        """Let other processes work in the folder."""
        self._unlock()

    def forsake(self) -> None:
        """Leave no trace of a run that was refused before its first file, so that another may have the folder."""
        folders = [entry for entry in self.path.rglob("*") if entry.is_dir()]
        if {entry.name for entry in self.path.rglob("*") if entry not in folders} <= {RUN, LOCK}:
            for folder in sorted(folders, reverse=True):
                folder.rmdir()
            (self.path / RUN).unlink(missing_ok=True)
            self.release()
            if self._new:
                self.path.rmdir()

    def _refuse_strangers(self) -> None:
        names = sorted(entry.name for entry in self.path.iterdir())
        strangers = [name for name in names if name != LOCK and not name.endswith(".partial")]
        if strangers and RUN not in names:
            raise ValueError(
                f"{self.path}: exists and is no run of mpcore (it holds {strangers[0]!r}); choose another folder"
            )

    def _claim(self, fingerprint: dict[str, Any]) -> None:
        mark = self.path / RUN
        if not mark.exists():
            write_text(mark, json.dumps({"format": FORMAT, "kind": "run", "fingerprint": fingerprint}, indent=1) + "\n")
            return
        found = read_json(mark).get("fingerprint", {})
        if not isinstance(found, dict) or not isinstance(found.get("recipe", {}), dict):
            raise ValueError(f"{mark}: damaged, its fingerprint is no object with a recipe; choose another folder")
        _refuse_another(self.path, _flat(found), _flat(fingerprint))

    @property
    def finished(self) -> bool:
        """Whether the run was sealed."""
        return (self.path / MANIFEST).exists()

    def kept(self, name: str) -> Path | None:
        """The file ``name`` if an earlier session finished it, else None.

        Raises:
            ValueError: if its bytes are no longer those that :meth:`vouch` saw.
        """
        path, note = self.path / name, self._note(name)
        if not path.exists() or not note.exists():
            return None
        if sha256(path) != note.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"{path}: has changed since the interrupted run wrote it; delete it and start again")
        return path

    def vouch(self, name: str) -> None:
        """Note the SHA-256 of the finished file ``name`` for :meth:`kept`."""
        write_text(self._note(name), sha256(self.path / name))

    def _note(self, name: str) -> Path:
        return self.path / PROGRESS / f"{Path(name).name}.sha256"

    def once(self, name: str, kind: type[Record], make: Callable[[], Record]) -> Any:
        """The record in file ``name`` if an earlier session wrote it, else what ``make`` returns, written."""
        if path := self.kept(name):
            return kind.read(path)
        record = make()
        record.write(self.path / name)
        self.vouch(name)
        return record

    def store_layer(self, index: int, plan: PlannedLayer, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        """Keep one finished layer for a resumed run."""
        name = _layer_file(index)
        save_tensors(self.path / name, tensors, {"plan": json.dumps(to_plain(plan))})
        self.vouch(name)

    def stored_layer(self, index: int) -> tuple[PlannedLayer, dict[str, np.ndarray[Any, Any]]] | None:
        """What :meth:`store_layer` kept, or None."""
        path = self.kept(_layer_file(index))
        if path is None:
            return None
        weights = open_weights(path)
        plan = from_plain(PlannedLayer, json.loads(weights.metadata["plan"]), "plan")
        return plan, {name: np.array(weights[name]) for name in weights}

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest, drop what only a resumed run needs, and let others in."""
        sweep(self.path)
        manifest.write(self.path / MANIFEST)
        shutil.rmtree(self.path / PROGRESS, ignore_errors=True)
        self.release()


def _refuse_another(folder: Path, found: dict[str, Any], given: dict[str, Any]) -> None:
    """A ValueError that names the first difference: what a user sets before the hashes of what follows from it."""
    was, now = (("model", "checkpoint")["checkpoint_sha256" in fingerprint] for fingerprint in (found, given))
    if was != now:
        raise ValueError(f"{folder}: holds the run of a {was}, and a {now} was given; choose another folder")
    hashed = [*_MEANS]
    for key in sorted({*found, *given}, key=lambda key: (hashed.index(key) if key in hashed else -1, key)):
        if found.get(key) != given.get(key):
            difference = f"{key} was {found.get(key)!r}, now {given.get(key)!r}"
            words = _MEANS.get(key, "")
            raise ValueError(f"{folder}: holds another run ({difference}); {words}choose another folder")


def _flat(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint with the fields of its recipe beside the others, such as ``recipe.pattern``."""
    recipe = fingerprint.get("recipe", {})
    fields = {f"recipe.{field}": value for field, value in recipe.items()}
    return {**fields, **{key: value for key, value in fingerprint.items() if key != "recipe"}}


def _layer_file(index: int) -> str:
    return f"{PROGRESS}/{index:04d}.safetensors"


def lock(folder: Path) -> Callable[[], None]:
    """Keep other processes out of ``folder`` until the function returned is called or this process ends.

    Raises:
        ValueError: if another process, or another run of this one, holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two runs in one folder are the user's to avoid
        return lambda: None
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return lambda: _unlock(path, descriptor)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise ValueError(f"{folder}: another process is at work in this folder") from None
            raise
        os.close(descriptor)  # the holder before us removed the file between our two calls


def _unlock(path: Path, descriptor: int) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove half-written files that a killed process left in ``folder``; only for the holder of its lock."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def hashes(folder: Path, *, but: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 of every file the manifest vouches for: all but itself, the report, the lock and the unfinished."""
    left_out = {MANIFEST, LOCK, "report.html", *but}
    files = (entry for entry in sorted(folder.iterdir()) if entry.is_file() and entry.name not in left_out)
    return {entry.name: sha256(entry) for entry in files if not entry.name.endswith(".partial")}


def trusted(folder: Path, name: str, manifest: Manifest) -> Path:
    """The path of file ``name`` of a finished run, its bytes being those the manifest vouches for.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if the manifest does not name it, or it has changed.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file in this run")
    if name not in manifest.files:
        raise ValueError(f"{path}: manifest.json does not name it")
    if sha256(path) != manifest.files[name]:
        raise ValueError(f"{path}: has changed since the run was sealed ('mpcore verify' says what else has)")
    return path


def check_sealed(folder: Path, *, but: Iterable[str] = ()) -> Manifest:
    """The manifest of a finished run, every file it names being as it was sealed, those of ``but`` left out.

    Raises:
        FileNotFoundError, ValueError: naming the first file that is not.
    """
    manifest = Manifest.read(folder / MANIFEST)
    for name in sorted(manifest.files.keys() - set(but)):
        trusted(folder, name, manifest)
    return manifest


def renew_manifest(folder: Path, written: Iterable[str]) -> None:
    """Hash the files named, where they exist, after a stage wrote them; the others keep the hash of their sealing."""
    manifest = Manifest.read(folder / MANIFEST)
    renewed = {name: sha256(folder / name) for name in written if (folder / name).is_file()}
    files = dict(sorted({**manifest.files, **renewed}.items()))
    dataclasses.replace(manifest, files=files).write(folder / MANIFEST)


def replace_sealed(folder: Path, name: str, record: Record) -> None:
    """Write ``record`` over the sealed file ``name``, which the manifest does not name meanwhile.

    A process that dies on the way leaves a file without a hash, and none that looks as if someone had changed it.
    """
    manifest = Manifest.read(folder / MANIFEST)
    others = {other: seal for other, seal in manifest.files.items() if other != name}
    dataclasses.replace(manifest, files=others).write(folder / MANIFEST)
    record.write(folder / name)
    renew_manifest(folder, (name,))


def unfinished(folder: Path, aim: str = "") -> str:
    """Why ``folder``, without a manifest, is no finished run: it was interrupted, or it is none at all."""
    if not (folder / RUN).is_file():
        return f"{folder}: no finished run{aim} ({MANIFEST} is missing)"
    command = "demo" if any(folder.glob("training-*.partial")) else "prune"
    return f"{folder}: interrupted run: the same `mpcore {command}` command finishes it"


def refuse_checkpoint(folder: Path, use: str) -> None:
    """Raise a ValueError for a finished run that began with a checkpoint: nothing says how to build its model.

    ``use`` is what then cannot be done, such as "evaluation".
    """
    if "checkpoint" in Manifest.read(folder / MANIFEST).source:
        raise ValueError(f"{folder}: pruned from a checkpoint: no model class, so no {use}")


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
