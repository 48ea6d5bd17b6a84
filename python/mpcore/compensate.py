"""Pruned weights that make up for what was removed: ADMM, least squares on a mask, SparseGPT.

A layer y = W x whose inputs have second moments H = E[x x'] changes its outputs by tr((W' - W) H (W' - W)') on average
when W becomes W'. All solvers minimise that with H + lambda I in place of H, lambda = damping * mean(diag H) (never
below 1e-7 of the mean, so that dead inputs and moments without full rank are fine; where H is all zeros the identity
takes its place and magnitudes decide). :func:`admm` leaves the least error, :func:`sparsegpt` is the fastest, and
:func:`lstsq` after a mask of any origin lies between; none of them retrains anything.

Results are the same bits for any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpcore import _native
from mpcore.arrays import to_bool, to_count, to_numpy, to_threads
from mpcore.pattern import Pattern

Matrix = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32]


def admm(
    W: Any,
    gram: Any,
    pattern: str | tuple[int, int] | Pattern,
    *,
    damping: float = 0.01,
    steps: int = 50,
    threads: int | None = None,
) -> Weights:
    """Choose mask and weights together: minimise tr((W' - W)(H + lambda I)(W' - W)') over W' in N:M.

    The alternating direction method of multipliers in coordinates in which diag(H + lambda I) is one, its penalty
    growing until the mask settles, then exchanges inside its groups that lower the error, then conjugate gradients on
    the support it found. To fit other targets than the layer's own weights, give them as ``W``.

    Args:
        W: (rows, columns) float32 or float64 weights, columns a multiple of M.
        gram: (columns, columns) float64 H, symmetric positive semidefinite.
        pattern: N:M along the columns.
        damping: share of the mean of diag H added to the diagonal.
        steps: most ADMM steps; the growing penalty settles the mask, mostly after 25 to 30, and that ends them.
        threads: number of threads; None uses all.

    Returns:
        (rows, columns) float32 W', exactly +0.0 where pruned.

    Raises:
        ValueError: for shapes, patterns or moments that do not fit.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(100, 8)) @ np.random.default_rng(1).normal(size=(8, 8))
        >>> W, gram = np.eye(8) + 0.1, x.T @ x / 100
        >>> pruned = admm(W, gram, "2:4")
        >>> int(np.count_nonzero(pruned.reshape(8, 2, 4), axis=2).max())
        2

    References:
        Boyd et al., "Distributed optimization and statistical learning via the alternating direction method of
        multipliers", 2011. Meng et al., "ALPS: Improved optimization for highly sparse one-shot pruning for large
        language models", 2024.
    """
    keep, group = _pattern(pattern)
    weight, moments = _layer(W, gram)
    return _native.admm(weight, moments, keep, group, float(damping), to_count(steps, "steps"), to_threads(threads))


def lstsq(
    W: Any, gram: Any, mask: Any, *, damping: float = 0.01, steps: int = 30, threads: int | None = None
) -> Weights:
    """Refit the weights on a given mask: minimise tr((W' - W)(H + lambda I)(W' - W)') with W' zero off the mask.

    Jacobi-preconditioned conjugate gradients, every row its own problem.

    Args:
        W: (rows, columns) float32 or float64 weights.
        gram: (columns, columns) float64 H, symmetric positive semidefinite.
        mask: (rows, columns) bool, true = kept; any support, N:M or not.
        damping: share of the mean of diag H added to the diagonal.
        steps: conjugate gradient steps; fewer are taken once the residual is 1e-6 of the weights.
        threads: number of threads; None uses all.

    Returns:
        (rows, columns) float32 W', exactly +0.0 off the mask.

    Raises:
        ValueError: for shapes or moments that do not fit.

    Example:
        >>> import numpy as np
        >>> gram = np.array([[1.0, 0.5], [0.5, 1.0]])
        >>> lstsq(np.array([[1.0, 1.0]]), gram, np.array([[True, False]]), damping=0.0)
        array([[1.5, 0. ]], dtype=float32)
    """
    weight, moments = _layer(W, gram)
    kept = np.ascontiguousarray(to_bool(mask, "mask", shape=weight.shape))
    return _native.lstsq(weight, moments, kept, float(damping), to_count(steps, "steps"), to_threads(threads))


def sparsegpt(
    W: Any,
    gram: Any,
    pattern: str | tuple[int, int] | Pattern,
    *,
    damping: float = 0.01,
    mask: Any = None,
    threads: int | None = None,
) -> Weights:
    """Prune from left to right, each removed weight's error passed on to the columns not yet visited.

    Fast, and the usual yardstick; :func:`lstsq` on its mask lowers the error it leaves at little cost.

    Args:
        W: (rows, columns) float32 or float64 weights, columns a multiple of M.
        gram: (columns, columns) float64 H, symmetric positive semidefinite.
        pattern: N:M along the columns.
        damping: share of the mean of diag H added to the diagonal.
        mask: (rows, columns) bool inside the pattern, to prescribe what is kept; None lets the sweep choose.
        threads: number of threads; None uses all.

    Returns:
        (rows, columns) float32 W', exactly +0.0 where pruned.

    Raises:
        ValueError: for shapes, patterns, masks or moments that do not fit.

    Example:
        >>> import numpy as np
        >>> sparsegpt(np.array([[3.0, 1.0, 2.0, 4.0]]), np.eye(4), "2:4")
        array([[3., 0., 0., 4.]], dtype=float32)

    References:
        Frantar, Alistarh, "SparseGPT: Massive language models can be accurately pruned in one-shot", 2023.
    """
    keep, group = _pattern(pattern)
    weight, moments = _layer(W, gram)
    kept = None if mask is None else np.ascontiguousarray(to_bool(mask, "mask", shape=weight.shape))
    return _native.sparsegpt(weight, moments, keep, group, kept, float(damping), to_threads(threads))


def output_error(W: Any, W_pruned: Any, gram: Any) -> float:
    """Relative squared error of a layer's outputs, tr((W' - W) H (W' - W)') / tr(W H W'), in float64 and undamped.

    Args:
        W: (rows, columns) float32 or float64 weights.
        W_pruned: (rows, columns) W'.
        gram: (columns, columns) float64 H.

    Returns:
        0 if no output changes, 1 for a layer pruned away, inf if outputs that were zero no longer are.

    Raises:
        ValueError: for shapes or moments that do not fit.

    Example:
        >>> import numpy as np
        >>> output_error(np.array([[3.0, 4.0]]), np.array([[0.0, 4.0]]), np.eye(2))
        0.36
    """
    weight = np.ascontiguousarray(to_numpy(W, "W", ndim=2), dtype=np.float64)
    pruned = np.ascontiguousarray(to_numpy(W_pruned, "W_pruned", ndim=2), dtype=np.float64)
    if weight.shape != pruned.shape:
        raise ValueError(f"W_pruned: shape {pruned.shape} is not that of W, {weight.shape}")
    return _native.output_error(weight, pruned, _moments(gram, weight.shape[1]))


def _pattern(pattern: str | tuple[int, int] | Pattern) -> tuple[int, int]:
    checked = Pattern(pattern)
    return checked.keep, checked.group


def _layer(W: Any, gram: Any) -> tuple[Weights, Matrix]:
    array = to_numpy(W, "W", ndim=2)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which the core names
        weight = np.ascontiguousarray(array, dtype=np.float32)
    return weight, _moments(gram, weight.shape[1])


def _moments(gram: Any, columns: int) -> Matrix:
    moments = np.ascontiguousarray(to_numpy(gram, "gram", ndim=2), dtype=np.float64)
    if moments.shape != (columns, columns):
        raise ValueError(f"gram: shape {moments.shape} is not ({columns}, {columns}), W has {columns} columns")
    return moments
