"""The training loop of a distillation: steps, masks, learning rate, log, and where to take it up again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpcore.models.apply import hold_masks, layer_of
from mpcore.models.batches import forward, place, split
from mpcore.models.objective import DistillSettings, distillation_loss
from mpcore.models.randomness import seed_generators
from mpcore.models.trainstate import TrainState
from mpcore.records import ConvergenceError, Record

_UNDECAYED = frozenset({"pos_embed", "cls_token", "dist_token", "reg_token"})
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


class Trainer:
    """One training: the modules, where it stands and what it has logged.

    ``masks`` are keyed by layer name; ``steps`` is the number of batches of an epoch.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        masks: Mapping[str, Tensor],
        settings: DistillSettings,
        steps: int,
    ) -> None:
        self.student, self.teacher, self.settings, self.steps = student, teacher, settings, steps
        self.masks = {name: mask.to(layer_of(student, name).weight.device) for name, mask in masks.items()}
        self.optimizer = torch.optim.AdamW(_decay_groups(student, settings.weight_decay), lr=settings.lr, fused=True)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.step, self.seconds, self.losses = 0, 0.0, [0.0, 0.0]
        self.entries: list[HistoryEntry] = []
        hold_masks(student, self.masks)

    def take_up(self, position: dict[str, Any]) -> None:
        """Go on from where :meth:`position` stood."""
        self.step, self.seconds, self.losses = position["step"], position["seconds"], list(position["losses"])
        self.entries = [HistoryEntry(**entry) for entry in position["entries"]]

    def position(self) -> dict[str, Any]:
        """Where the training stands, as plain data."""
        entries = [vars(entry) for entry in self.entries]
        return {"step": self.step, "seconds": self.seconds, "losses": self.losses, "entries": entries}

    def run(self, train: Iterable[Any], state: TrainState, advance: Callable[[str], None]) -> None:
        """Train to the last epoch, saving to ``state`` on the way."""
        for _ in range(self.step):
            advance("resumed")
        for epoch in range(self.step // self.steps, self.settings.epochs):
            _set_modes(self.student, self.teacher, update_batchnorm=self.settings.update_batchnorm)
            done = self.step - epoch * self.steps
            for index, batch in enumerate(_epoch(train, self.settings.seed, epoch, self.steps)):
                if index >= done:
                    self._train_on(batch, epoch)
                    advance(f"epoch {epoch + 1}")
                    if self.step % self.settings.save_every == 0 or index + 1 == self.steps:
                        state.save(self.position())
                elif index + 1 == done:
                    state.restore_generators()

    def _train_on(self, batch: Any, epoch: int) -> None:
        began = time.perf_counter()
        lr = self.settings.lr * learning_rate(self.step, self.settings.epochs * self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self._loss(*split(batch))
        if not math.isfinite(value := loss.item()):
            raise ConvergenceError(f"distill: the loss is {value} at step {self.step + 1} (lr {lr:.3g}); lower lr")
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        for name, mask in self.masks.items():
            if (gradient := layer_of(self.student, name).weight.grad) is not None:
                gradient.masked_fill_(~mask, 0.0)
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        hold_masks(self.student, self.masks)
        self.step += 1
        self.seconds += time.perf_counter() - began
        self._log(value, epoch, lr)

    def _loss(self, inputs: Any, targets: Tensor | None) -> Tensor:
        inputs = place(inputs, self.student)
        answer = forward(self.student, inputs)
        reference = None
        if self.teacher is not None:
            with torch.no_grad():
                reference = forward(self.teacher, place(inputs, self.teacher)).to(answer.device)
            if reference.shape != answer.shape:
                raise ValueError(
                    f"distill: the teacher's logits are {tuple(reference.shape)}, the student's {tuple(answer.shape)}"
                )
        return distillation_loss(
            answer, reference, None if targets is None else targets.to(answer.device), self.settings
        )

    def _log(self, loss: float, epoch: int, lr: float) -> None:
        self.losses = [self.losses[0] + loss, self.losses[1] + 1]
        place_in_epoch = self.step - epoch * self.steps
        if place_in_epoch % max(self.steps // _LINES_PER_EPOCH, 1) == 0 or place_in_epoch == self.steps:
            mean = self.losses[0] / self.losses[1]
            self.entries.append(HistoryEntry(self.step, epoch + 1, mean, lr, round(self.seconds, 3)))
            self.losses = [0.0, 0.0]


def learning_rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate at ``step`` (from 0) of ``total``: linear rise over ``warmup``, then a half cosine.

    Example:
        >>> [round(learning_rate(step, 4, 0.5), 3) for step in range(4)]
        [0.5, 1.0, 0.75, 0.25]
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / (total - rising + 1)))


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("distill: no parameter of the student requires a gradient")
    free = [p for name, p in named if p.ndim <= 1 or name.rpartition(".")[2] in _UNDECAYED]
    chosen = {id(parameter) for parameter in free}
    decayed = [parameter for _, parameter in named if id(parameter) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _set_modes(student: nn.Module, teacher: nn.Module | None, *, update_batchnorm: bool) -> None:
    student.train()
    if not update_batchnorm:
        for module in student.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    if teacher is not None:
        teacher.eval()


def _epoch(train: Iterable[Any], seed: int, epoch: int, steps: int) -> Iterator[Any]:
    """The batches of one epoch: whatever draws random numbers for them starts from (seed, epoch)."""
    seed_generators(seed, epoch)
    for owner in (train, getattr(train, "sampler", None)):
        if callable(set_epoch := getattr(owner, "set_epoch", None)):
            set_epoch(epoch)
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            generator.manual_seed(torch.initial_seed() >> 1)
    given = 0
    for given, batch in enumerate(train, start=1):
        if given > steps:
            break
        yield batch
    if given != steps:
        more = "more than " if given > steps else ""
        raise ValueError(f"train: gave {more}{min(given, steps)} batches in epoch {epoch + 1}, its length is {steps}")
