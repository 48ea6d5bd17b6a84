"""The training loop of a distillation: steps, masks, learning rate, log, and where to take it up again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpcore.models.apply import hold_masks, layer_of
from mpcore.models.batches import count_samples, size
from mpcore.models.objective import DistillSettings, Objective
from mpcore.models.optimizer import WeightAverage, learning_rate, make_optimizer
from mpcore.models.processes import Processes
from mpcore.models.randomness import seed_generators
from mpcore.models.trainstate import TrainState
from mpcore.records import ConvergenceError, Record, to_rows

_LINES_PER_EPOCH = 20


@dataclass(frozen=True)
class HistoryEntry:
    """One line of train.jsonl: the mean loss over the steps since the line before."""

    step: int  # steps done
    epoch: int  # counted from 1
    loss: float
    lr: float
    seconds: float  # of training so far


@dataclass(frozen=True)
class History(Record):
    """The training curve."""

    kind: ClassVar[str] = "history"
    entries: tuple[HistoryEntry, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per line of train.jsonl, for ``pandas.DataFrame``."""
        return to_rows(self.entries)


class Trainer:
    """One training: the modules, where it stands and what it has logged.

    ``masks`` are keyed by layer name; ``batches`` is the number of batches of an epoch, over all ``processes``.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        masks: Mapping[str, Tensor],
        settings: DistillSettings,
        batches: int,
        processes: Processes,
    ) -> None:
        self.student, self.teacher, self.settings, self.batches = student, teacher, settings, batches
        self.processes = processes
        self.steps = -(-batches // settings.accumulate)  # of an epoch
        self.masks = {name: mask.to(layer_of(student, name).weight.device) for name, mask in masks.items()}
        self.objective = Objective(student, teacher, self.masks, settings)
        self.optimizer = make_optimizer(student, settings)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.step, self.seconds, self.losses = 0, 0.0, [0.0, 0.0]
        self.entries: list[HistoryEntry] = []
        hold_masks(student, self.masks)
        self.average = WeightAverage(student, settings.ema)

    def take_up(self, position: dict[str, Any]) -> None:
        """Go on from where :meth:`position` stood."""
        self.step, self.seconds, self.losses = position["step"], position["seconds"], list(position["losses"])
        self.entries = [HistoryEntry(**entry) for entry in position["entries"]]

    def position(self) -> dict[str, Any]:
        """Where the training stands, as plain data."""
        entries = [vars(entry) for entry in self.entries]
        return {"step": self.step, "seconds": self.seconds, "losses": self.losses, "entries": entries}

    def run(self, train: Iterable[Any], state: TrainState, advance: Callable[[str], None]) -> None:
        """Train to the last epoch, saving to ``state`` on the way; leave the average in the student if there is one."""
        train = self.processes.part(train)
        for _ in range(self.step):
            advance("resumed")
        for epoch in range(self.step // self.steps, self.settings.epochs):
            _set_modes(self.student, self.teacher, self.settings)
            done = self.step - epoch * self.steps
            batches = batches_of_epoch(train, self.settings.seed, epoch, self.batches, self.processes.rank)
            for index, group in enumerate(_grouped(batches, self.settings.accumulate)):
                if index >= done:
                    self._train_on(group, epoch)
                    advance(f"epoch {epoch + 1}")
                    if self.step % self.settings.save_every == 0 or index + 1 == self.steps:
                        state.save(self.position())
                elif index + 1 == done:
                    state.restore_generators()
        self.average.give()

    def _train_on(self, group: list[Any], epoch: int) -> None:
        """One step along the gradient of the mean loss over all samples of ``group``, a list of batches."""
        began = time.perf_counter()
        lr = self.optimizer.defaults["lr"]
        lr *= learning_rate(self.step, self.settings.epochs * self.steps, self.settings.warmup)
        loss = self._differentiate(group)
        if not math.isfinite(loss):
            raise ConvergenceError(f"distill: the loss is {loss} at step {self.step + 1} (lr {lr:.3g}); lower lr")
        for name, mask in self.masks.items():
            if (gradient := layer_of(self.student, name).weight.grad) is not None:
                gradient.masked_fill_(~mask, 0.0)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        if not math.isfinite(norm):
            raise ConvergenceError(
                f"distill: the gradient is {norm} at step {self.step + 1}, where the loss is {loss:.3g}; lower lr, or "
                "look for a slope that is infinite where the value is not (sqrt at 0)"
            )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.optimizer.step()
        hold_masks(self.student, self.masks)
        self.step += 1
        self.average.update(self.step)
        self.seconds += time.perf_counter() - began
        self._log(loss, epoch, lr)

    def _differentiate(self, group: list[Any]) -> float:
        """Set the gradient of the mean loss over all samples of ``group``, of all processes, and return that loss."""
        self.optimizer.zero_grad()
        samples = sum(count_samples(batch) for batch in group)
        if samples == 0:
            raise ValueError(f"train: no sample in the batches of step {self.step + 1}")
        total = torch.zeros((), device=self.parameters[0].device)
        for batch in group:
            inputs, targets = self.processes.share(batch)
            if count := size(inputs):
                loss = self.objective(inputs, targets) * (count / samples)
                torch.autograd.backward(loss)
                total += loss.detach()
        self.processes.sum_gradients(self.parameters, total)
        return total.item()

    def _log(self, loss: float, epoch: int, lr: float) -> None:
        self.losses = [self.losses[0] + loss, self.losses[1] + 1]
        place_in_epoch = self.step - epoch * self.steps
        if place_in_epoch % max(self.steps // _LINES_PER_EPOCH, 1) == 0 or place_in_epoch == self.steps:
            mean = self.losses[0] / self.losses[1]
            self.entries.append(HistoryEntry(self.step, epoch + 1, mean, lr, round(self.seconds, 3)))
            self.losses = [0.0, 0.0]


def _set_modes(student: nn.Module, teacher: nn.Module | None, settings: DistillSettings) -> None:
    """Training mode for what the settings ask for, evaluation mode for the rest."""
    student.train(settings.dropout)
    for module in student.modules():
        if isinstance(module, _BatchNorm):
            module.train(settings.update_batchnorm)
    if teacher is not None:
        teacher.eval()


def batches_of_epoch(train: Iterable[Any], seed: int, epoch: int, count: int, rank: int) -> Iterator[Any]:
    """The batches of one epoch: whatever draws random numbers for them starts from (seed, epoch).

    The global generators are left seeded. Once all processes have settled on one order of the batches, each draws
    numbers of its own for dropout.
    """
    seed_generators(seed, epoch)
    for owner in (train, getattr(train, "sampler", None)):
        if callable(set_epoch := getattr(owner, "set_epoch", None)):
            set_epoch(epoch)
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            generator.manual_seed(torch.initial_seed() >> 1)
    given = 0
    for given, batch in enumerate(train, start=1):
        if given > count:
            break
        if given == 1 and rank:
            seed_generators(seed, epoch, rank, 1)
        yield batch
    if given != count:
        more = "more than " if given > count else ""
        raise ValueError(f"train: gave {more}{min(given, count)} batches in epoch {epoch + 1}, its length is {count}")


def _grouped(batches: Iterator[Any], count: int) -> Iterator[list[Any]]:
    """``count`` batches at a time; the last group holds what is left."""
    while group := list(islice(batches, count)):
        yield group
