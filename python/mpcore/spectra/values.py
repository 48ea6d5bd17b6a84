"""Singular values and leading singular triplets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpcore import _native
from mpcore.arrays import to_count, to_numpy, to_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SvdInfo(NamedTuple):
    """How good a partial decomposition is.

    ``residuals``: (k,), the larger of ||W v - s u|| and ||W' u - s v|| for each triplet, over s1, measured on the
    result in float64. ``matvecs``: products of W or W' with one vector. ``converged``: all residuals <= tol.
    """

    residuals: NDArray[np.float64]
    matvecs: int
    converged: bool


class Svd(NamedTuple):
    """W ~ U diag(s) Vt: U (rows, k), s (k,) descending, Vt (k, cols), and how good that is."""

    U: NDArray[Any]
    s: NDArray[np.float64]
    Vt: NDArray[Any]
    info: SvdInfo


def native_matrix(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order, as float64 if it is that already and as float32 otherwise."""
    return np.ascontiguousarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)


def all_values(matrix: NDArray[Any], *, bulk: bool, threads: int | None) -> NDArray[np.float64]:
    """Singular values of what :func:`native_matrix` returned; ``bulk`` trades the smallest ones for speed."""
    return _native.singular_values(matrix, bulk, threads)


def svdvals(W: Any, *, threads: int | None = None) -> NDArray[np.float64]:
    """All singular values of W, descending, in float64; the same bits for any number of threads.

    Every value is within 1e-7 of the largest; for float64 input also tiny ones are, within 1e-10, because a second,
    slower route takes over where squaring would lose them.

    Args:
        W: (rows, cols), float16, bfloat16, float32 or float64, numpy or torch CPU tensor or DLPack, any strides.
        threads: None uses all cores.

    Raises:
        TypeError: for other element types.
        ValueError: for NaN, infinity, an empty matrix or another number of dimensions.
        ConvergenceError: if the result fails its own check (sum of squares against the norm).

    Example:
        >>> import numpy as np
        >>> svdvals(np.diag([3.0, 4.0])).round(12).tolist()
        [4.0, 3.0]
    """
    return all_values(native_matrix(to_numpy(W, "W", ndim=2, finite=False)), bulk=False, threads=to_threads(threads))


def svd(
    W: Any,
    k: int,
    *,
    tol: float = 1e-6,
    method: str = "krylov",
    seed: int = 0,
    threads: int | None = None,
) -> Svd:
    """The k largest singular values of W with their vectors.

    ``"krylov"`` iterates (block Lanczos with thick restarts, full reorthogonalisation) until every triplet has a
    residual below ``tol`` times s1. ``"fast"`` is the randomised range finder with two power iterations: a fixed cost,
    and an error that ``info.residuals`` states. Both are a function of W and seed alone, whatever the threads. For
    ``tol`` of 1e-6 and above W is multiplied in its own precision; values, right vectors and residuals come from
    products in float64 in any case.

    Args:
        W: (rows, cols), as for :func:`svdvals`.
        k: number of triplets, 1 <= k <= min(rows, cols).
        tol: wanted residual relative to s1, at least 1e-14.
        method: "krylov" or "fast".
        seed: of the random start block.
        threads: None uses all cores.

    Returns:
        (U, s, Vt, info); U and Vt in float32 for half and single precision input, float64 otherwise.

    Raises:
        TypeError: for other element types.
        ValueError: for k, tol or method out of range, NaN, infinity or an empty matrix.
        ConvergenceError: if "krylov" does not reach ``tol``.

    Example:
        >>> import numpy as np
        >>> U, s, Vt, info = svd(np.diag([3.0, 4.0, 1.0]), 2)
        >>> s.round(12).tolist(), info.converged
        ([4.0, 3.0], True)
    """
    array = to_numpy(W, "W", ndim=2, finite=False)
    limit = min(array.shape)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= limit:
        raise ValueError(f"k: {k!r} is not an integer between 1 and {limit}, the shorter side of {array.shape}")
    if method not in ("krylov", "fast"):
        raise ValueError(f"method: {method!r} is not 'krylov' or 'fast'")
    to_count(seed, "seed")
    if not 1e-14 <= tol < 1:
        raise ValueError(f"tol: {tol!r} is not in [1e-14, 1)")
    matrix = native_matrix(array)
    left, s, right, residuals, matvecs = _native.top_svd(
        matrix, int(k), tol, method == "fast", seed, to_threads(threads)
    )
    dtype = np.float64 if array.dtype == np.float64 else np.float32
    info = SvdInfo(residuals, matvecs, bool((residuals <= tol).all()))
    return Svd(left.T.astype(dtype, copy=False), s, right.astype(dtype, copy=False), info)
