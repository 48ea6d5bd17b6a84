"""Recovery by distillation: the pruned student learns the dense teacher's answers, its masks held at every step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.html import facts
from mpcore.models.apply import layer_of
from mpcore.models.batches import Part, digest, split
from mpcore.models.evaluate import keep_modes
from mpcore.models.export import state_sha256
from mpcore.models.memory import memory_kept
from mpcore.models.objective import DistillSettings as DistillSettings
from mpcore.models.optimizer import rates
from mpcore.models.processes import Processes
from mpcore.models.randomness import lend_generators
from mpcore.models.trainer import History as History
from mpcore.models.trainer import Trainer, batches_of_epoch
from mpcore.models.trainstate import TrainState
from mpcore.progress import progress_bar
from mpcore.records import EvalTable


@dataclass(frozen=True)
class DistillRun:
    """A trained student, the run folder it belongs to, and its training curve."""

    model: nn.Module
    folder: Path
    history: History

    def _repr_html_(self) -> str:
        """What a notebook shows: where the run is, the training curve, and the evaluation where there is one."""
        evaluation = self.folder / "eval.json"
        shown = EvalTable.read(evaluation)._repr_html_() if evaluation.exists() else ""
        entries = self.history.entries
        told = {"folder": str(self.folder), "steps": entries[-1].step if entries else 0}
        return facts(told, title="DistillRun") + self.history._repr_html_() + shown


@memory_kept()
def train_student(
    student: nn.Module,
    teacher: nn.Module | None,
    masks: Mapping[str, Tensor],
    train: Iterable[Any],
    *,
    settings: DistillSettings | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = False,
) -> History:
    """Train ``student`` in place; weights that a mask prunes are exactly +0.0 before, during and after.

    With no masks and the dense model as student this is the control: the dense model trained as long.

    A run that was interrupted (Ctrl-C, power) takes up from the last state in ``folder`` and ends with the very bits of
    an uninterrupted one, on the same machine and with the same number of threads, as long as the batches are a function
    of the epoch: lists, :class:`mpcore.models.shuffle.ShuffledBatches`, and DataLoaders, whose generators are seeded
    here for every epoch. The global generators of the caller are left as they were.

    Started in several processes (``accelerate launch``, ``torchrun``), each makes the same call with all the batches
    and takes its share of every one; the gradient is that of the whole batch, so that only rounding and dropout tell
    the result from that of one process. Models move to the process's device and back. The first process writes; all
    must see the folder.

    Args:
        student: trained where it requires gradients; its modes are restored afterwards.
        teacher: frozen, in evaluation mode; None trains on the labels alone.
        masks: layer name -> bool tensor in the weight's shape, true = kept.
        train: batches ``(inputs, targets)`` or ``inputs``; iterated anew every epoch and of known length.
        settings: see :class:`DistillSettings`.
        folder: gets ``train.jsonl`` and ``progress/train.safetensors``; None keeps nothing.
        resume: take up an earlier state; False starts again.
        progress: a bar on stderr.

    Raises:
        TypeError: if ``train`` cannot be iterated twice or has no length.
        ValueError: for an empty ``train``, a student with weights where a mask prunes or nothing to train, a teacher
            that is the student, features with nothing to compare, a state in ``folder`` that another run left, or
            processes that do not make the same call.
        mpcore.ConvergenceError: if the loss is no longer finite; the last state on disk is still good.
    """
    settings = settings or DistillSettings()
    batches = _count_batches(train)
    if teacher is student:
        raise ValueError("distill: teacher and student are the same module; pass a copy")
    masks = {name: torch.as_tensor(mask) for name, mask in masks.items()}
    _check_masks(student, masks)
    models = (student,) if teacher is None else (student, teacher)
    processes = Processes.find()
    if settings.update_batchnorm and processes.count > 1:
        raise ValueError("distill: update_batchnorm wants one process; of several each would see statistics of its own")
    with keep_modes(*models), processes.placed(*models), lend_generators(next(student.parameters()).device):
        trainer = Trainer(student, teacher, masks, settings, batches, processes)
        identity = _identity(trainer)
        if folder is not None:
            identity["data_sha256"] = _data_sha256(train, settings.seed)
        state = TrainState(folder, student, trainer.optimizer, trainer.average.tensors, identity, processes)
        if resume and (position := state.load()) is not None:
            trainer.take_up(position)
        with progress_bar(progress and processes.main, "train", settings.epochs * trainer.steps) as advance:
            trainer.run(train, state, advance)
    return History(tuple(trainer.entries))


def _identity(trainer: Trainer) -> dict[str, Any]:
    """What a state on disk must agree on to be taken up, and all processes among themselves."""
    processes, teacher = trainer.processes, trainer.teacher
    fields = dataclasses.asdict(trainer.settings)
    fields["lr"], fields["weight_decay"] = rates(trainer.settings)
    del fields["save_every"]
    identity = {
        **fields,
        "batches": trainer.batches,
        "processes": processes.count,
        "student_sha256": state_sha256(trainer.student),
        "teacher_sha256": None if teacher is None else state_sha256(teacher),
        "masks_sha256": digest([dict(sorted(trainer.masks.items()))]),
    }
    for rank, other in enumerate(processes.gather(identity)):
        for key, value in identity.items():
            if other[key] != value:
                raise ValueError(f"distill: {key} is {value!r} in process {processes.rank}, {other[key]!r} in {rank}")
    return identity


def _data_sha256(train: Any, seed: int) -> str:
    """Of the first batch of the first epoch, so that a training is not taken up with other data.

    Of its targets, where there are any: what is in order by the seed may still be augmented at random.
    """
    batch = next(batches_of_epoch(train, seed, 0, len(train), 0))
    inputs, targets = (batch.inputs, batch.targets) if isinstance(batch, Part) else split(batch)
    return digest([inputs if targets is None else targets])


def _count_batches(train: Any) -> int:
    if isinstance(train, (Tensor, str, bytes)) or not hasattr(train, "__iter__"):
        raise TypeError(f"train: {type(train).__name__} is not an iterable of batches; wrap one batch in a list")
    if isinstance(train, Iterator):
        raise TypeError(f"train: a {type(train).__name__} gives its batches once; wanted one to iterate every epoch")
    try:
        count = len(train)
    except TypeError:
        raise TypeError(
            f"train: a {type(train).__name__} has no length; the learning rate needs the number of batches"
        ) from None
    if count == 0:
        raise ValueError("train: no batches")
    return count


def _check_masks(student: nn.Module, masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        weight = layer_of(student, name).weight
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"layer {name}: its mask is {mask.dtype} {tuple(mask.shape)}, wanted bool {tuple(weight.shape)}"
            )
        if wrong := int((weight.detach()[~mask.to(weight.device)] != 0).sum()):
            raise ValueError(
                f"layer {name}: {wrong} weights are not zero where the mask prunes; prune the student first"
            )
