"""After pruning: distil the student, then renew the certificate, the evaluation and the manifest of its run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.checkpoint import open_weights, sha256
from mpcore.folder import (
    MANIFEST,
    OF_DISTILLATION,
    check_sealed,
    lock,
    refuse_checkpoint,
    renew_manifest,
    replace_sealed,
    sweep,
    unfinished,
)
from mpcore.models.batches import count_samples, materialise
from mpcore.models.certificate import LogitTrail
from mpcore.models.distill import DistillRun, DistillSettings, train_student
from mpcore.models.evaluate import compare, evaluate
from mpcore.models.export import load, save_model
from mpcore.models.memory import memory_kept
from mpcore.models.processes import Processes
from mpcore.models.randomness import lend_generators
from mpcore.models.trainer import batches_of_epoch
from mpcore.prunerun import PruneRun
from mpcore.records import EvalTable, Manifest

STUDENT, EVALUATION = "student.safetensors", "eval.json"
OF_STUDENT = tuple(name for name in OF_DISTILLATION if name != EVALUATION)
"""Files that every distillation makes or renews."""


@memory_kept()
def distill(
    run: PruneRun | str | PathLike[str],
    train: Iterable[Any],
    *,
    model: nn.Module | None = None,
    teacher: nn.Module | None = None,
    evaluation: Iterable[Any] | None = None,
    epochs: int = 3,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    **settings: Any,
) -> DistillRun:
    """Let the pruned model learn the dense one's answers; its masks are held at every step.

    Writes student.safetensors, train.jsonl and certificate-student.json (measured on the first training samples) into
    the run's folder and, with ``evaluation``, renews eval.json; manifest.json comes last. Without it the rows of an
    earlier student leave eval.json once another one is there. The same call resumes an interrupted training, and takes
    a finished one as it ended; in the processes that ``accelerate launch`` or ``torchrun`` started it is one training
    that they share.

    Args:
        run: a PruneRun, or the folder of one.
        train: batches ``(inputs, targets)`` or ``inputs``, iterated every epoch; never the images you evaluate on.
        model: a module of the same architecture, where the manifest does not say how to build one.
        teacher: frozen; the run's dense model if None.
        evaluation: labelled batches on which dense, pruned and distilled model are compared.
        epochs: passes over ``train``. More epochs are another training, whose learning rate falls more slowly: they
            want ``resume=False``.
        seed: of everything random.
        resume: take up an interrupted training; False starts again from the pruned model and replaces the student.
        progress: a bar on stderr.
        settings: further fields of :class:`mpcore.models.distill.DistillSettings`, such as ``lr`` or ``optimizer``.

    Raises:
        ValueError: if the folder holds no finished run, one of a checkpoint without its model, one whose files have
            changed since, another training or another process at work, or if a setting is out of range.
        mpcore.ConvergenceError: if the loss is no longer finite.
    """
    chosen = DistillSettings(epochs=epochs, seed=seed, **settings)
    folder, shape = (run.folder, run.model) if isinstance(run, PruneRun) else (Path(run), model)
    if not (folder / MANIFEST).exists():
        raise ValueError(unfinished(folder, " to distil"))
    refuse_checkpoint(folder, "distillation")
    held_out = None if evaluation is None else materialise(evaluation, "evaluation")
    processes = Processes.find()
    with _alone(folder) if processes.main else nullcontext():
        check_sealed(folder, but=OF_STUDENT if held_out is None else OF_DISTILLATION)
        pruned, student, dense = (
            load(folder, copy.deepcopy(shape), which=which) for which in ("model", "model", "dense")
        )
        masks = _stored_masks(folder)
        history = train_student(
            student, teacher or dense, masks, train, settings=chosen, folder=folder, resume=resume, progress=progress
        )
        if processes.main:
            before = Manifest.read(folder / MANIFEST).files.get(STUDENT)
            save_model(student, masks, folder / STUDENT)
            if held_out is not None:
                models = {"dense": dense, "pruned": pruned, "distilled": student}
                replace_sealed(folder, EVALUATION, compare(models, held_out, progress=progress))
            elif sha256(folder / STUDENT) != before:
                _forget_students(folder)
            _certify(folder, dense, pruned, student, train, seed=seed)
            renew_manifest(folder, OF_DISTILLATION)
        processes.wait()
    return DistillRun(student.eval(), folder, history)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process works in ``folder``; what a killed one left half-written is gone."""
    unlock = lock(folder)
    try:
        sweep(folder)
        yield
    finally:
        unlock()


def _stored_masks(folder: Path) -> dict[str, Tensor]:
    stored = open_weights(folder / "masks.safetensors")
    return {name: torch.from_numpy(stored[name].copy()) for name in stored}


def _certify(
    folder: Path, dense: nn.Module, pruned: nn.Module, student: nn.Module, train: Iterable[Any], *, seed: int
) -> None:
    """Certificate of the student in two steps, pruning and distillation, on the first samples of the first epoch."""
    samples = Manifest.read(folder / MANIFEST).recipe["certify_samples"]
    with lend_generators(next(student.parameters()).device):
        batches = list(_first_batches(train, samples, seed))
    trail = LogitTrail(dense, batches, samples)
    trail.step("pruning", pruned)
    trail.step("distillation", student)
    trail.certificate(folder / STUDENT, seed=seed).write(folder / "certificate-student.json")


def _first_batches(train: Any, samples: int, seed: int) -> Iterator[Any]:
    """As many batches of the first epoch of a training with ``seed`` as hold so many samples."""
    for batch in batches_of_epoch(train, seed, 0, len(train), 0):
        yield batch
        samples -= count_samples(batch)
        if samples <= 0:
            return


def _forget_students(folder: Path) -> None:
    """Take out of eval.json what an earlier student left there: its row, and those put beside it."""
    if not (folder / EVALUATION).is_file():
        return
    table = EvalTable.read(folder / EVALUATION)
    kept = tuple(row for row in table.rows if row.model in ("dense", "pruned"))
    if kept != table.rows:
        replace_sealed(folder, EVALUATION, dataclasses.replace(table, rows=kept))


def add_to_evaluation(run: DistillRun, name: str, model: nn.Module, data: Iterable[Any]) -> None:
    """Evaluate one more model, such as the dense one trained as long, and put it beside the others in eval.json."""
    path = run.folder
    table = EvalTable.read(path / EVALUATION)
    row = evaluate(model, data, teacher=load(path, copy.deepcopy(run.model), which="dense"), name=name)
    others = tuple(entry for entry in table.rows if entry.model != name)
    replace_sealed(path, EVALUATION, dataclasses.replace(table, rows=(*others, row)))
