"""The 2:4 linear layer on sparse tensor cores, through torch's own cuSPARSELt operators.

torch checks little of what it is given, so everything is checked here first: the pattern (a weight that is not 2:4
gives wrong numbers, not an error), contiguity (leading dimensions are assumed), and -0.0 (which packers have taken for
a value). The compressed form is opaque and never stored: keep mask and values, compress on load.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mpcore.gpu.capability import RULES, why_not


@dataclass(frozen=True)
class Compressed24:
    """A 2:4 weight of ``shape`` (rows, columns) as cuSPARSELt wants it, and the algorithm to run it with."""

    packed: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype
    algorithm: tuple[int, int, int] = (0, 1, -1)  # id, split_k, split_k mode


def unsuitable(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Why a weight of this shape and dtype cannot be compressed; empty if it can.

    Example:
        >>> unsuitable((64, 40), torch.float16)
        '40 columns is not a multiple of 16'
    """
    if dtype == torch.float32:
        return "float32: its sparse format is 1:2, not 2:4; convert to float16 or bfloat16"
    if dtype not in RULES:
        return f"{dtype} is not float16 or bfloat16"
    if len(shape) != 2:
        return f"shape {tuple(shape)} is not (rows, columns)"
    rule = RULES[dtype]
    for length, multiple, name in ((shape[0], rule.rows, "rows"), (shape[1], rule.columns, "columns")):
        if length == 0 or length % multiple:
            return f"{length} {name} is not a multiple of {multiple}"
    return ""


def clean(weight: Tensor) -> Tensor:
    """A contiguous copy of a 2:4 weight with every zero +0.0.

    Raises:
        ValueError: if a group of four holds more than two values that are not zero; it names the first.
    """
    kept = (weight != 0).reshape(weight.shape[0], -1, 4).sum(2)
    if bool((kept > 2).any()):
        row, group = (int(index) for index in (kept > 2).nonzero()[0])
        raise ValueError(
            f"weight: row {row}, group {group} keeps {int(kept[row, group])} of 4 values, wanted at most 2"
        )
    return weight.detach().masked_fill(weight == 0, 0.0).contiguous()


def compress(weight: Tensor) -> Compressed24:
    """Compress a 2:4 weight.

    Args:
        weight: (rows, columns) on a CUDA device, float16 or bfloat16, at most two of every four columns not zero.

    Raises:
        ValueError: if device, dtype, shape or pattern do not fit; the message says which.
    """
    if reason := why_not(weight.device) or unsuitable(tuple(weight.shape), weight.dtype):
        raise ValueError(f"weight: {reason}")
    rows, columns = weight.shape
    return Compressed24(torch._cslt_compress(clean(weight)), (rows, columns), weight.dtype)


def decompress(weight: Compressed24) -> Tensor:
    """The dense (rows, columns) weight: what the kernel makes of the identity, which is exact."""
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.packed.device)
    return linear(identity, weight).t().contiguous()


def linear(x: Tensor, weight: Compressed24, bias: Tensor | None = None) -> Tensor:
    """``x W' + bias``, contiguous, in the dtype of ``x``; tokens are padded to the multiple the kernel wants.

    Args:
        x: (..., columns), the weight's dtype and device.
        weight: what :func:`compress` returned.
        bias: (rows,) or None.

    Raises:
        ValueError: for another dtype or number of columns.
    """
    tokens = _tokens(x, weight)
    count = tokens.shape[0]
    multiple = RULES[weight.dtype].tokens
    if missing := -count % multiple:
        tokens = functional.pad(tokens, (0, 0, 0, missing))
    algorithm, split_k, mode = weight.algorithm
    product = torch._cslt_sparse_mm(
        weight.packed,
        tokens.t(),
        bias=bias,
        transpose_result=True,
        alg_id=algorithm,
        split_k=split_k,
        split_k_mode=mode,
    )
    return product[:count].reshape(*x.shape[:-1], weight.shape[0])


def tune(weight: Compressed24, x: Tensor) -> Compressed24:
    """The same weight with the algorithm that cuSPARSELt finds fastest for this ``x`` (it times them)."""
    tokens = _tokens(x, weight)
    tokens = functional.pad(tokens, (0, 0, 0, -tokens.shape[0] % RULES[weight.dtype].tokens))
    binding: Any = torch._C  # torch declares no types for it
    found = binding._cusparselt.mm_search(weight.packed, tokens.t(), None, None, None, True)
    algorithm, split_k, mode, highest = (int(value) for value in found)
    if not 0 <= algorithm <= highest:
        raise RuntimeError(f"cuSPARSELt's search returned {tuple(found)}: algorithm {algorithm} of {highest}")
    return dataclasses.replace(weight, algorithm=(algorithm, split_k, mode))


def _tokens(x: Tensor, weight: Compressed24) -> Tensor:
    if x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: {x.dtype} {tuple(x.shape)}, wanted {weight.dtype} (..., {weight.shape[1]})")
    return x.reshape(-1, weight.shape[1]).contiguous()
