"""Which layers can run sparse: the pattern of their weights, or why they stay dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from mpcore.gpu.sparse24 import unsuitable
from mpcore.models.sparse_layers import conv_matrix
from mpcore.records import Pattern

Layer = nn.Linear | nn.Conv2d
GROUPS = range(2, 33)
"""The M of the patterns that are looked for: all that the kernels take."""


def find_pattern(weight: Tensor, *, groups: Sequence[int] = GROUPS) -> Pattern | None:
    """The sparsest N:M that a (rows, columns) weight obeys, the smallest M among equals; None if it obeys none.

    Args:
        weight: (rows, columns).
        groups: the M to try; those that do not divide the columns are passed over.

    Example:
        >>> str(find_pattern(torch.tensor([[1.0, 0, 0, 2, 0, 0, 3, 4]])))
        '2:4'
    """
    kept, found = weight != 0, []
    for group in groups if weight.numel() else ():
        if weight.shape[1] % group == 0:
            keep = max(int(kept.reshape(len(weight), -1, group).sum(2).max()), 1)
            if keep < group:
                found.append(Pattern((keep, group)))
    return min(found, key=lambda pattern: (pattern.density, pattern.group), default=None)


def layer_pattern(module: Layer) -> Pattern | None:
    """The pattern of a layer's weight; in a convolution it runs along the input channels."""
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return find_pattern(weight)
    return find_pattern(conv_matrix(weight), groups=[group for group in GROUPS if weight.shape[1] % group == 0])


def why_dense(module: Layer, x: Tensor | None, backend: str) -> tuple[str, Pattern | None]:
    """Why a layer with the input ``x`` cannot run sparse, or the pattern it has."""
    if reason := _unusual(module):
        return reason, None
    if x is None:
        return "the example does not call it", None
    weight = module.weight.detach()
    if x.dtype != weight.dtype:
        return f"its input is {x.dtype}, its weight {weight.dtype}", None
    if isinstance(module, nn.Conv2d) and (reason := _unfit_convolution(module, x, backend)):
        return reason, None
    if not weight.numel():
        return f"its weight is empty, {tuple(weight.shape)}", None
    pattern = layer_pattern(module)
    if pattern is None:
        share = float((weight == 0).double().mean())
        return f"no N:M pattern: {100 * share:.0f} % of its weights are zero", None
    return _unfit_weight(weight, pattern, backend), pattern


def _unusual(module: Layer) -> str:
    """Why calling the layer may be more than its weight and bias say; empty if it is not."""
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    if any(isinstance(hook, BasePruningMethod) for hook in hooks):
        return "torch.nn.utils.prune masks its weight in every call; torch.nn.utils.prune.remove makes that permanent"
    for name in ("__call__", "forward", "_conv_forward"):
        if name in vars(module) or getattr(type(module), name, None) is not getattr(kind, name, None):
            return f"a {kind.__name__} with a {name} of its own"
    return f"a {kind.__name__} with hooks" if hooks else ""


def _unfit_convolution(module: nn.Conv2d, x: Tensor, backend: str) -> str:
    if backend != "cpu":
        return "convolutions run dense on a GPU: no open kernel takes 2:4 convolutions"
    if module.groups != 1:
        return f"a convolution in {module.groups} groups"
    if module.padding_mode != "zeros" or module.padding == "same":
        return f"padding {module.padding!r} in mode {module.padding_mode!r}"
    return ""


def _unfit_weight(weight: Tensor, pattern: Pattern, backend: str) -> str:
    if not bool(torch.isfinite(weight).all()):
        return f"{pattern}, but its weight holds NaN or infinity"
    if backend == "cpu":
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"{weight.dtype}: the CPU kernels take float32 and bfloat16"
        return ""
    if pattern.density > 0.5 or pattern.group > 4:
        return f"{pattern} is not 2:4"
    return unsuitable(tuple(weight.shape), weight.dtype)
