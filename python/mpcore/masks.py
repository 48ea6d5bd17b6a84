"""N:M masks: which weights of every group stay (true = kept)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcore import _native
from mpcore.arrays import to_bool, to_numpy
from mpcore.pattern import Pattern as Pattern

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
    found: Mask = mask.reshape(shape).transpose(np.argsort(order))
    return found


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


def quadratic_mask(
    W: Any,
    gram: Any,
    pattern: str | tuple[int, int] | Pattern,
    *,
    target: Any = None,
    target_weight: float = 0.0,
) -> Mask:
    """The mask with the least removed energy ``r' C_g r`` in every row and group, where r are the removed weights.

    Every one of the C(M, N) patterns of a group is visited (12 870 at 8:16), so the result is the optimum; of equal
    costs the pattern that keeps lower indices wins. With ``target`` the cost of a pattern grows by ``target_weight``
    times the number of its entries that differ from the target, in units of the mean of ``r' C_g r`` over all patterns
    of the same row and group: the alpha of Berlyand et al., "Pruning DNNs via the Marchenko-Pastur distribution".

    Args:
        W: (rows, columns) weights.
        gram: (columns / M, M, M) second moments ``mean(h h')`` of each group's inputs; the symmetric part matters.
        pattern: N:M with at most 2^20 patterns per group; M must divide the columns.
        target: (rows, columns) bool, a mask to stay close to.
        target_weight: >= 0; 0 ignores the target.

    Raises:
        ValueError: for shapes that do not fit, NaN or infinity, or a pattern too large to enumerate.
        TypeError: if W or gram is not floating point, or the target not boolean.

    Example:
        >>> gram = np.array([[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]])
        >>> quadratic_mask(np.ones((1, 3)), gram, "1:3")
        array([[False, False,  True]])
    """
    wanted = Pattern(pattern)
    weight = _matrix(W, "W")
    moments = np.ascontiguousarray(to_numpy(gram, "gram", ndim=3), dtype=np.float64)
    groups = (weight.shape[1] // wanted.group, wanted.group, wanted.group)
    if weight.shape[1] % wanted.group == 0 and moments.shape != groups:
        raise ValueError(f"gram: shape {moments.shape} does not fit W of shape {weight.shape}, wanted {groups}")
    goal = None if target is None else np.ascontiguousarray(to_bool(target, "target", shape=weight.shape))
    return _native.quadratic_mask(weight, moments, wanted.keep, wanted.group, goal, float(target_weight))


def transposable_mask(score: Any, pattern: str | tuple[int, int] | Pattern) -> Mask:
    """The best mask that keeps N entries in every row and every column of each M x M block.

    Solved exactly, as a small flow problem per block, so that the transposed matrix is N:M too.

    Args:
        score: (rows, columns), any sign, finite; M must divide both.
        pattern: N:M.

    Raises:
        ValueError: if M does not divide the rows and columns, or for NaN or infinity.
        TypeError: if the score is not floating point.

    Example:
        >>> transposable_mask(np.array([[3.0, 2.0], [2.5, 0.0]]), "1:2")
        array([[False,  True],
               [ True, False]])
    """
    wanted = Pattern(pattern)
    return _native.transposable_mask(_matrix(score, "score"), wanted.keep, wanted.group)


def _matrix(value: Any, name: str) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    """A C-contiguous float32 or float64 matrix."""
    matrix = to_numpy(value, name, ndim=2)
    return np.ascontiguousarray(matrix, dtype=np.float64 if matrix.dtype == np.float64 else np.float32)


def _axis(array: npt.NDArray[Any], axis: int, name: str) -> int:
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis {axis}: {name} has {array.ndim} dimensions")
    return axis % array.ndim
