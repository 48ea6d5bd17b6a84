"""Small pruned networks for the tests of sparse execution; seeded."""

from __future__ import annotations

import torch
from torch import nn

from mpcore.masks import nm_mask


def prune(model: nn.Module, pattern: str) -> nn.Module:
    """Every Linear of the model but its head, in place."""
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and "head" not in name:
                layer.weight *= torch.from_numpy(nm_mask(layer.weight.abs(), pattern))
    return model


class Mixed(nn.Module):
    """Convolutions of every geometry the kernels take, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.point = nn.Conv2d(16, 24, 1)
        self.wide = nn.Conv2d(24, 16, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False)
        self.down = nn.Conv2d(16, 8, 1, stride=2, padding="valid")
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.down(self.wide(self.point(self.stem(x).relu()).relu()).relu()).mean((2, 3)))


def mixed(pattern: str = "2:4", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Mixed().eval()
    with torch.no_grad():
        for layer in model.children():
            layer.weight *= torch.from_numpy(nm_mask(layer.weight.abs().numpy(), pattern, axis=1))
    return model
