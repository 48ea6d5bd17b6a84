"""After pruning: distil the student, then renew the certificate, the evaluation and the manifest of its run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpcore.certify import certify
from mpcore.checkpoint import open_weights, sha256
from mpcore.folder import (
    MANIFEST,
    OF_DISTILLATION,
    check_sealed,
    lock,
    refuse_checkpoint,
    renew_manifest,
    sweep,
    unfinished,
)
from mpcore.models.batches import digest, materialise
from mpcore.models.certificate import LogitTrail
from mpcore.models.distill import DistillRun, DistillSettings, train_student
from mpcore.models.evaluate import evaluate
from mpcore.models.export import load, save_model
from mpcore.models.memory import memory_kept
from mpcore.models.processes import Processes
from mpcore.prunerun import PruneRun
from mpcore.records import EvalTable, Manifest


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
    the run's folder and, with ``evaluation``, renews eval.json; manifest.json comes last. The same call resumes an
    interrupted training, and takes a finished one as it ended; in the processes that ``accelerate launch`` or
    ``torchrun`` started it is one training that they share.

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
    unlock = lock(folder) if processes.main else None
    try:
        if processes.main:
            sweep(folder)
        written = tuple(name for name in OF_DISTILLATION if name != "eval.json" or held_out is not None)
        check_sealed(folder, but=written)
        pruned, student, dense = (
            load(folder, copy.deepcopy(shape), which=which) for which in ("model", "model", "dense")
        )
        stored = open_weights(folder / "masks.safetensors")
        masks = {name: torch.from_numpy(stored[name].copy()) for name in stored}
        history = train_student(
            student, teacher or dense, masks, train, settings=chosen, folder=folder, resume=resume, progress=progress
        )
        if processes.main:
            save_model(student, masks, folder / "student.safetensors")
            _certify(folder, dense, pruned, student, train)
            if held_out is not None:
                models = {"dense": dense, "pruned": pruned, "distilled": student}
                _evaluate(folder, models, held_out, progress=progress)
            renew_manifest(folder, written)
        processes.wait()
    finally:
        if unlock is not None:
            unlock()
    return DistillRun(student.eval(), folder, history)


def _certify(folder: Path, dense: nn.Module, pruned: nn.Module, student: nn.Module, train: Iterable[Any]) -> None:
    """Certificate of the student in two steps, pruning and distillation, on the first samples of the first epoch."""
    manifest = Manifest.read(folder / MANIFEST)
    samples = manifest.recipe["certify_samples"]
    if callable(choose := getattr(train, "set_epoch", None)):
        choose(0)
    trail = LogitTrail(dense, list(islice(iter(train), samples)), samples)
    trail.step("pruning", pruned)
    trail.step("distillation", student)
    certificate = certify(
        trail.dense,
        trail.now,
        path=trail.path,
        labels=trail.labels,
        data_sha256=digest([inputs for inputs, _ in trail.batches]),
        model_sha256=sha256(folder / "student.safetensors"),
        seed=manifest.seed,
    )
    certificate.write(folder / "certificate-student.json")


def _evaluate(folder: Path, models: dict[str, nn.Module], held_out: list[Any], *, progress: bool) -> None:
    rows = tuple(
        evaluate(model, held_out, teacher=models["dense"], name=name, progress=progress)
        for name, model in models.items()
    )
    EvalTable(rows, f"{rows[0].n} held-out samples").write(folder / "eval.json")


def add_to_evaluation(run: DistillRun, name: str, model: nn.Module, data: Iterable[Any]) -> None:
    """Evaluate one more model, such as the dense one trained as long, and put it beside the others in eval.json."""
    path = run.folder
    table = EvalTable.read(path / "eval.json")
    row = evaluate(model, data, teacher=load(path, copy.deepcopy(run.model), which="dense"), name=name)
    others = tuple(entry for entry in table.rows if entry.model != name)
    dataclasses.replace(table, rows=(*others, row)).write(path / "eval.json")
    renew_manifest(path, ("eval.json",))
