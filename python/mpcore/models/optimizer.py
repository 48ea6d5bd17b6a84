"""How a student is stepped: the optimizer, its learning rate over time, and the average of the weights it visits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mpcore.models.objective import DistillSettings

DEFAULTS = {"adamw": (1e-5, 0.01), "sgd": (1e-3, 1e-4)}
"""Optimizer -> (learning rate, weight decay) where the settings give none: the paper's, transformers and ResNets."""

_UNDECAYED = frozenset({"pos_embed", "cls_token", "dist_token", "reg_token"})


def rates(settings: DistillSettings) -> tuple[float, float]:
    """Peak learning rate and weight decay, those of :data:`DEFAULTS` where the settings leave them out.

    Example:
        >>> rates(DistillSettings(optimizer="sgd", weight_decay=0.0))
        (0.001, 0.0)
    """
    lr, weight_decay = DEFAULTS[settings.optimizer]
    return (
        lr if settings.lr is None else settings.lr,
        weight_decay if settings.weight_decay is None else settings.weight_decay,
    )


def make_optimizer(student: nn.Module, settings: DistillSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9, of every parameter that requires a gradient.

    One-dimensional parameters (biases, normalisations), position embeddings and class tokens are not decayed.

    Raises:
        ValueError: if no parameter requires a gradient.
    """
    lr, weight_decay = rates(settings)
    named = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("distill: no parameter of the student requires a gradient")
    free = [p for name, p in named if p.ndim <= 1 or name.rpartition(".")[2] in _UNDECAYED]
    chosen = {id(parameter) for parameter in free}
    decayed = [parameter for _, parameter in named if id(parameter) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


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


class WeightAverage:
    """Exponential moving average of the parameters a training moves: a <- d a + (1 - d) w after every step.

    It starts at the weights before the first step; d = min(decay, (1 + t) / (10 + t)) at step t = 1, 2, ..., so that a
    short training is not held back by where it began. Pruned weights are +0.0 in every w, and so in a. Buffers are not
    averaged: the student keeps its own.

    ``tensors`` is the average, by name; empty with decay 0, which turns it off.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._moving = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._moving.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._moving.items():
            self.tensors[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def give(self) -> None:
        """Put the average into the model."""
        for name, parameter in self._moving.items():
            parameter.copy_(self.tensors[name])
