"""What two runs of a model on one batch compute, and whether rounding alone explains how they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.batches import tensors_of
from mpcore.models.evaluate import eval_mode


def check_example(example_input: object) -> None:
    """Refuse what is no tensor, and say what to do instead.

    Raises:
        TypeError: naming what was given.
    """
    if isinstance(example_input, Tensor):
        return
    hint = "a batch (inputs, targets) is not what a model takes; pass its inputs alone"
    if not isinstance(example_input, (tuple, list)):
        hint = "a model that takes something else needs a wrapper whose forward takes one tensor"
    raise TypeError(f"example_input: a {type(example_input).__name__}, wanted one torch tensor; {hint}")


def run(model: nn.Module, example_input: Tensor) -> Any:
    """The output in evaluation mode; a model that draws random numbers draws the same ones in every run."""
    device = example_input.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), eval_mode(model):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
        return model(example_input)


def floating(output: Any) -> list[Tensor]:
    """Every floating-point tensor in an output, in the order of :func:`mpcore.models.batches.tensors_of`."""
    return [tensor for tensor in tensors_of(output) if tensor.is_floating_point() or tensor.is_complex()]


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest change of an entry, relative to the largest entry of its tensor; infinite if the shapes differ.

    Entries that were NaN or infinite are left out; a tensor of zeros is measured by the largest entry of the others.

    Example:
        >>> difference([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
        0.25
    """
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return math.inf
    pairs = [(b[b.isfinite()], a[b.isfinite()]) for b, a in zip(before, after, strict=True)]
    pairs = [(b, a) for b, a in pairs if len(b)]
    largest = max((float(b.abs().max()) for b, _ in pairs), default=0.0)
    found = 0.0
    for b, a in pairs:
        wide = torch.promote_types(b.dtype, torch.float32)
        change = float((a.to(wide) - b.to(wide)).abs().max()) / (float(b.abs().max()) or largest or 1.0)
        found = max(found, change) if math.isfinite(change) else math.inf
    return found


def rounding(dtype: torch.dtype) -> float:
    """Relative error of one operation: of the dtype, or of bfloat16 where torch may compute float32 in it."""
    eps = torch.finfo(dtype).eps
    return max(eps, torch.finfo(torch.bfloat16).eps) if _lowered() else eps


def tolerance(model: nn.Module, outputs: Sequence[Tensor]) -> float:
    """The largest difference between two runs of a whole model that is taken for rounding.

    The cube root of the relative error: 0.5 % in float32, 20 % in bfloat16. Rounding adds up to less even in deep
    models, and a layer that computes something else makes more of a difference.
    """
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *outputs) if tensor.is_floating_point()}
    return float(max((rounding(dtype) for dtype in dtypes), default=0.0) ** (1 / 3))


def _lowered() -> bool:
    """Whether torch may compute with fewer digits than the dtype has."""
    try:
        return torch.is_autocast_enabled("cpu") or torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # it was set by the newer interface, which this one refuses to read
        return True
