"""What a student is trained on: the settings of a distillation and its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class DistillSettings:
    """How a student is trained.

    Args:
        epochs: passes over the training batches.
        lr: peak learning rate of AdamW, the paper's for vision transformers; linear warm-up, then a cosine down to
            almost nothing.
        weight_decay: not applied to one-dimensional parameters, position embeddings and class tokens.
        warmup: share of all steps with a rising learning rate.
        alpha: weight of the teacher in the loss; the labels have 1 - alpha. 1 where the data has no labels, 0 where
            there is no teacher.
        temperature: of the teacher's and the student's answers in the Kullback-Leibler term.
        label_smoothing: of the cross entropy.
        clip: largest norm of all gradients together.
        update_batchnorm: renew running means and variances. Off by default: with a few thousand images they get worse,
            not better, and a pruned network with the dense one's output means needs no new ones.
        seed: of shuffling, augmentation and dropout.
        save_every: steps between two states on disk; there is one after every epoch besides.

    Raises:
        ValueError: for a value out of its range.
    """

    epochs: int = 3
    lr: float = 1e-5
    weight_decay: float = 0.01
    warmup: float = 0.05
    alpha: float = 0.5
    temperature: float = 2.0
    label_smoothing: float = 0.1
    clip: float = 1.0
    update_batchnorm: bool = False
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        ranges = {
            "epochs": self.epochs >= 1,
            "lr": 0 < self.lr < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup": 0 <= self.warmup <= 1,
            "alpha": 0 <= self.alpha <= 1,
            "temperature": 0 < self.temperature < math.inf,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "clip": 0 < self.clip <= math.inf,
            "seed": self.seed >= 0,
            "save_every": self.save_every >= 1,
        }
        for name, holds in ranges.items():
            if not holds:
                raise ValueError(f"distill: {name} = {getattr(self, name)} is out of range")


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
