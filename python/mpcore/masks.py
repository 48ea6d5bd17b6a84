"""N:M masks: which weights of every group stay (true = kept)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcore import _native
from mpcore.records import Pattern as Pattern
from mpcore.records import to_numpy

Mask = npt.NDArray[np.bool_]


def nm_mask(score: Any, pattern: str | tuple[int, int] | Pattern, *, axis: int = -1) -> Mask:
    """Keep the ``keep`` largest scores of each ``group`` along ``axis``.

    An entry stays if fewer than N of its group are greater, or equal with a lower index: ties go to the lower index, so
    the mask depends on the scores alone. It is the optimum of every criterion that is a sum over entries.

    Args:
        score: any number of dimensions and strides, float16, bfloat16, float32 or float64; any sign, finite.
        pattern: N:M, for example ``"2:4"``.
        axis: the axis cut into groups of M; M must divide its length.

    Returns:
        The mask, in the shape and memory order of ``score``.

    Raises:
        ValueError: for NaN or infinity, an empty score, or a length that is not a multiple of M.
        TypeError: if the score is not floating point.

    Example:
        >>> nm_mask(np.array([[1.0, 3.0, 3.0, 3.0]]), "2:4")
        array([[False,  True,  True, False]])
    """
    wanted = Pattern(pattern)
    array = to_numpy(score, "score", finite=False)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    order = sorted(range(array.ndim), key=lambda i: -abs(array.strides[i]))
    ordered = array.transpose(order)
    if not ordered.flags.c_contiguous:
        order, ordered = list(range(array.ndim)), np.ascontiguousarray(array)
    place = order.index(_axis(array, axis, "score"))
    shape = ordered.shape
    fibers = ordered.reshape(math.prod(shape[:place]), shape[place], math.prod(shape[place + 1 :]))
    try:
        mask = _native.nm_mask(fibers, wanted.keep, wanted.group)
    except ValueError:
        to_numpy(score, "score")  # names the entry that is not finite by its own index
        raise
    return mask.reshape(shape).transpose(np.argsort(order))


def check_mask(mask: Any, pattern: str | tuple[int, int] | Pattern, *, axis: int = -1) -> None:
    """Do nothing if at most ``keep`` of each ``group`` along ``axis`` are true.

    Args:
        mask: bool, numpy or torch, any number of dimensions and strides.
        pattern: N:M.
        axis: the axis cut into groups of M; M must divide its length.

    Raises:
        ValueError: at the first bad group, named by its row (the other axes, counted in C order) and its index.
        TypeError: if the mask is not boolean.

    Example:
        >>> check_mask(np.array([[True, True, False, False]]), "2:4")
    """
    wanted = Pattern(pattern)
    kept = to_bool(mask, "mask")
    rows = np.moveaxis(kept, _axis(kept, axis, "mask"), -1)
    matrix = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
    _native.check_mask(np.ascontiguousarray(matrix), wanted.keep, wanted.group)


def to_bool(mask: Any, name: str) -> Mask:
    """A boolean array from numpy or a torch CPU tensor, without importing torch.

    Raises:
        TypeError: for any other type of element.
    """
    kept = np.asarray(mask.detach().cpu() if type(mask).__module__.startswith("torch") else mask)
    if kept.dtype != np.bool_:
        raise TypeError(f"{name}: dtype {kept.dtype} is not bool")
    return kept


def _axis(array: npt.NDArray[Any], axis: int, name: str) -> int:
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis {axis}: {name} has {array.ndim} dimensions")
    return axis % array.ndim
