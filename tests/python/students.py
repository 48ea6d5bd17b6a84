"""A small student under masks, its teacher, and batches to train it on, whole or cut short."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from nets import TinyConvNet, images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mpcore.models.apply import hold_masks, layer_of
from mpcore.models.shuffle import ShuffledBatches

LAYERS = ("blocks.0._expand_conv", "tail.0", "fc")
X, Y = images(48), torch.arange(48) % 10


class Dropping(TinyConvNet):
    """A network whose training draws random numbers of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


def pair(seed: int = 0) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """A student under masks, its teacher, the masks."""
    teacher = Dropping(seed)
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(layer_of(student, name).weight.shape, generator=generator) < 0.5 for name in LAYERS}
    hold_masks(student, masks)
    return student, teacher, masks


def exact_pair() -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """A pair without dropout in float64, where rounding hides nothing."""
    teacher, student = TinyConvNet(0).double(), TinyConvNet(0).double()
    _, _, masks = pair()
    hold_masks(student, masks)
    return student, teacher, masks


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def batches(kind: str) -> Any:
    if kind == "shuffled":
        return ShuffledBatches(X, Y, batch_size=8, seed=3, augment=noisy)
    if kind == "list":
        return [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]
    data = TensorDataset(X, Y)
    generator = torch.Generator() if kind == "loader with a generator" else None
    return DataLoader(data, batch_size=8, shuffle=True, generator=generator)


class PowerCut:
    """Batches that stop the world after so many."""

    def __init__(self, inner: Any, after: int) -> None:
        self.inner, self.left = inner, after

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.inner:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch
