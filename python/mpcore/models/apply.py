"""A layer's weight as the matrix that masks and solvers see, and back.

Linear: the weight itself, (out, in). Conv2d (O, C, kh, kw): (O, kh*kw*C) with C fastest, so that groups of N:M run
along input channels, as the hardware wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Matrix = np.ndarray[Any, Any]


def layer_of(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    """The Linear or Conv2d called ``name``.

    Raises:
        TypeError: if that module is neither.
    """
    module = model.get_submodule(name)
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        raise TypeError(f"layer {name}: is a {type(module).__name__}, wanted a Linear or Conv2d")
    return module


def load_own(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of tensors that come from a model of this very class.

    Modules are told that they are of today's version: without it they take them for those of the oldest, and may refuse
    them or turn them round.
    """
    state = model.state_dict()
    state.clear()
    state.update(tensors)
    model.load_state_dict(state)


def as_matrix(weight: Tensor) -> Matrix:
    """(rows, columns) float32 copy of a weight in the matrix view."""
    weight = weight.detach().float().cpu()
    if weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1)
    return np.array(weight.reshape(weight.shape[0], -1).numpy())


def from_matrix(matrix: Matrix, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The tensor of ``shape`` whose matrix view is ``matrix``; the dtype stays."""
    tensor = torch.from_numpy(np.ascontiguousarray(matrix))
    if len(shape) == 4:
        outputs, inputs, height, width = shape
        return tensor.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2).contiguous()
    return tensor.reshape(tuple(shape))


@torch.no_grad()
def set_weight(module: nn.Linear | nn.Conv2d, matrix: Matrix) -> None:
    """Write a matrix into a layer, in the layer's own dtype and on its device; zeros stay exactly +0.0."""
    module.weight.copy_(from_matrix(matrix, module.weight.shape))


@torch.no_grad()
def shift_output(module: nn.Linear | nn.Conv2d, norm: nn.Module | None, shift: Matrix) -> None:
    """Add ``shift`` (out,) to the mean output: to the bias, or off the running mean of the BatchNorm that follows."""
    values = torch.from_numpy(np.asarray(shift, np.float64))
    if module.bias is not None:
        module.bias.copy_((module.bias.double().cpu() + values).to(module.bias))
    elif norm is not None:
        mean = norm.running_mean
        if not isinstance(mean, Tensor):
            raise TypeError("the BatchNorm after the layer keeps no running mean")
        mean.copy_((mean.double().cpu() - values).to(mean))


@torch.no_grad()
def hold_masks(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Set every pruned weight to exactly +0.0; masks are keyed by layer name and have the weight's shape."""
    for name, mask in masks.items():
        weight = layer_of(model, name).weight
        weight.masked_fill_(~mask.to(weight.device), 0.0)
