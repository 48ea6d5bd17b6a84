"""What a student is trained on: the settings of a distillation and its loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcore.models.batches import forward, place
from mpcore.models.evaluate import check_classes
from mpcore.models.features import feature_loss, layer_outputs


@dataclass(frozen=True)
class DistillSettings:
    """How a student is trained.

    Args:
        epochs: passes over the training batches.
        optimizer: ``"adamw"``, or ``"sgd"`` with Nesterov momentum 0.9, which the paper uses for ResNets.
        lr: peak learning rate; linear warm-up, then a cosine down to almost nothing. None takes the paper's: 1e-5 for
            AdamW, 1e-3 for SGD.
        weight_decay: not applied to one-dimensional parameters, position embeddings and class tokens. None takes the
            paper's: 0.01 for AdamW, 1e-4 for SGD.
        warmup: share of all steps with a rising learning rate.
        alpha: weight of the teacher in the loss; the labels have 1 - alpha. 1 where the data has no labels, 0 where
            there is no teacher.
        temperature: of the teacher's and the student's answers in the Kullback-Leibler term.
        label_smoothing: of the cross entropy.
        clip: largest norm of all gradients together.
        accumulate: batches per step; their gradients make that of one batch of all their samples. What is left at the
            end of an epoch makes a step of its own.
        precision: of both forward passes; weights, masks, losses and the optimizer stay float32. ``"bfloat16"`` by
            autocast. float16 is not offered: its narrow range needs loss scaling, which skips steps and is one more
            state to resume.
        ema: decay of the weights' moving average (:class:`mpcore.models.optimizer.WeightAverage`), which then is the
            student; 0 is off.
        features: weight of the mean over pruned layers and samples of ||s - t||^2 / ||t||^2, s and t a layer's output
            in student and teacher; 0 is off. The teacher must have the student's channel order, as a run's own has.
        dropout: let dropout and stochastic depth drop, and whatever else a module does in training only. Off by
            default: a student starts trained, and a few epochs of noise that its teacher has not move it away from the
            teacher's answers.
        update_batchnorm: renew running means and variances. Off by default: with a few thousand images they get worse,
            not better, and a pruned network with the dense one's output means needs no new ones.
        seed: of shuffling, augmentation and dropout.
        save_every: steps between two states on disk; there is one after every epoch besides.

    Raises:
        ValueError: for a value out of its range.
    """

    epochs: int = 3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    warmup: float = 0.05
    alpha: float = 0.5
    temperature: float = 2.0
    label_smoothing: float = 0.1
    clip: float = 1.0
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    ema: float = 0.0
    features: float = 0.0
    dropout: bool = False
    update_batchnorm: bool = False
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        for name, choices in {"optimizer": ("adamw", "sgd"), "precision": ("float32", "bfloat16")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"distill: {name} = {getattr(self, name)!r}, wanted {' or '.join(choices)}")
        ranges = {
            "epochs": self.epochs >= 1,
            "lr": self.lr is None or 0 < self.lr < math.inf,
            "weight_decay": self.weight_decay is None or 0 <= self.weight_decay < math.inf,
            "warmup": 0 <= self.warmup <= 1,
            "alpha": 0 <= self.alpha <= 1,
            "temperature": 0 < self.temperature < math.inf,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "clip": 0 < self.clip <= math.inf,
            "accumulate": self.accumulate >= 1,
            "ema": 0 <= self.ema < 1,
            "features": 0 <= self.features < math.inf,
            "seed": self.seed >= 0,
            "save_every": self.save_every >= 1,
        }
        for name, holds in ranges.items():
            if not holds:
                raise ValueError(f"distill: {name} = {getattr(self, name)!r} is out of range")


def distillation_loss(
    student: Tensor, teacher: Tensor | None, targets: Tensor | None, settings: DistillSettings
) -> Tensor:
    """(1 - a) CE(student, targets) + a tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), mean over samples.

    a is ``settings.alpha``, or 1 without targets, or 0 without a teacher; the cross entropy is label-smoothed.
    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015).

    Args:
        student: logits (n, classes).
        teacher: logits (n, classes) or None.
        targets: class numbers (n,) or None.
        settings: gives alpha, temperature, label_smoothing.

    Raises:
        ValueError: with neither teacher nor targets.
    """
    if teacher is None and targets is None:
        raise ValueError("distill: without a teacher the training data needs targets")
    tau = settings.temperature
    alpha = 0.0 if teacher is None else 1.0 if targets is None else settings.alpha
    loss = student.new_zeros(())
    if targets is not None and alpha < 1:
        cross = functional.cross_entropy(student, targets, label_smoothing=settings.label_smoothing)
        loss = loss + (1 - alpha) * cross
    if teacher is not None and alpha > 0:
        log_p, log_q = (student / tau).log_softmax(1), (teacher / tau).log_softmax(1)
        loss = loss + alpha * tau**2 * functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return loss


class Objective:
    """Student, teacher and settings as one function of a batch, whose gradient the student follows.

    Args:
        student: what is trained.
        teacher: frozen, or None.
        layers: the pruned layers, compared one by one if the settings give ``features`` a weight.
        settings: see :class:`DistillSettings`.

    Raises:
        ValueError: if ``features`` has a weight and there is no teacher or no pruned layer.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, layers: Iterable[str], settings: DistillSettings
    ) -> None:
        self.student, self.teacher, self.settings = student, teacher, settings
        self._layers = tuple(layers) if settings.features else ()
        if settings.features and (teacher is None or not self._layers):
            raise ValueError("distill: features compares pruned layers with a teacher's; it needs both")

    def __call__(self, inputs: Any, targets: Tensor | None) -> Tensor:
        """:func:`distillation_loss`, plus the weighted feature loss; a mean over the samples of the batch."""
        answer, found = self._run(self.student, inputs)
        if self.teacher is None:
            return distillation_loss(answer, None, _beside(targets, answer), self.settings)
        with torch.no_grad():
            reference, wanted = self._run(self.teacher, inputs)
        if reference.shape != answer.shape:
            raise ValueError(
                f"distill: the teacher's logits are {tuple(reference.shape)}, the student's {tuple(answer.shape)}"
            )
        loss = distillation_loss(answer, reference.to(answer.device), _beside(targets, answer), self.settings)
        return loss + self.settings.features * feature_loss(found, wanted) if self._layers else loss

    def _run(self, model: nn.Module, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, in float32 if they are not wider, and the outputs of the layers compared."""
        device = next(model.parameters()).device
        low = torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")
        with low, layer_outputs(model, self._layers) as outputs:
            logits = forward(model, place(inputs, model))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), outputs


def _beside(targets: Tensor | None, answer: Tensor) -> Tensor | None:
    if targets is not None and targets.ndim == 1 and not targets.is_floating_point():
        check_classes(targets, answer.shape[1], "train")
    return None if targets is None else targets.to(answer.device)
