"""The Marchenko-Pastur law and what goes with it, vectorised over every argument.

``gamma`` = p/n in (0, 1] is the aspect ratio (shorter over longer side), ``sigma_sq`` > 0 the variance of an entry.
Eigenvalues are those of W W' / n; :func:`spike_to_sample` and :func:`sample_to_spike` speak of singular values of
W / sqrt(n), their square roots. Floats in give a float, arrays an array of the broadcast shape.

Example:
    >>> from mpcore import mp
    >>> mp.edges(0.25)
    (0.25, 2.25)
    >>> round(mp.cdf(1.0, 0.25), 4)
    0.5534
    >>> mp.pdf([0.2, 2.25, 3.0], 0.25)
    array([0., 0., 0.])
    >>> round(mp.tracy_widom_ppf(0.95), 3)
    0.979
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mpcore import _native

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Numbers = NDArray[np.float64]

__all__ = [
    "cdf",
    "edges",
    "pdf",
    "ppf",
    "sample_to_spike",
    "spike_to_sample",
    "tracy_widom_cdf",
    "tracy_widom_ppf",
    "tracy_widom_sf",
]


def edges(gamma: float, sigma_sq: float = 1.0) -> tuple[float, float]:
    """Lower and upper edge ``sigma_sq (1 -+ sqrt(gamma))^2`` of the eigenvalues.

    Raises:
        ValueError: for gamma outside (0, 1] or sigma_sq <= 0.
    """
    low, high = _law("ppf", np.array([0.0, 1.0]), gamma, sigma_sq)
    return float(low), float(high)


@overload
def pdf(x: float, gamma: float, sigma_sq: float = ...) -> float: ...
@overload
def pdf(x: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = ...) -> Numbers: ...
def pdf(x: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = 1.0) -> Any:
    """Density of the eigenvalues: 0 at the edges and outside; infinite at 0 for gamma = 1, where it diverges.

    Raises:
        ValueError: for gamma outside (0, 1] or sigma_sq <= 0.
    """
    return _law("pdf", x, gamma, sigma_sq)


@overload
def cdf(x: float, gamma: float, sigma_sq: float = ...) -> float: ...
@overload
def cdf(x: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = ...) -> Numbers: ...
def cdf(x: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = 1.0) -> Any:
    """Share of the eigenvalues up to x, in closed form; exactly 0 and 1 at the edges.

    Raises:
        ValueError: for gamma outside (0, 1] or sigma_sq <= 0.
    """
    return _law("cdf", x, gamma, sigma_sq)


@overload
def ppf(q: float, gamma: float, sigma_sq: float = ...) -> float: ...
@overload
def ppf(q: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = ...) -> Numbers: ...
def ppf(q: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = 1.0) -> Any:
    """Quantile of level q in [0, 1]: the edges for 0 and 1, otherwise within 1e-13 of the inverse of :func:`cdf`.

    Raises:
        ValueError: for q outside [0, 1], gamma outside (0, 1] or sigma_sq <= 0.
    """
    _levels(q)
    return _law("ppf", q, gamma, sigma_sq)


@overload
def spike_to_sample(theta: float, gamma: float, sigma_sq: float = ...) -> float: ...
@overload
def spike_to_sample(theta: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = ...) -> Numbers: ...
def spike_to_sample(theta: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = 1.0) -> Any:
    """Singular value of W / sqrt(n) at which a signal of singular value theta shows up.

    ``sqrt((theta^2 + s)(theta^2 + s gamma)) / theta`` with s = sigma_sq, where theta^2 > s sqrt(gamma); the edge
    ``sqrt(s) (1 + sqrt(gamma))`` otherwise (Benaych-Georges and Nadakuditi, 2012).

    Raises:
        ValueError: for gamma outside (0, 1] or sigma_sq <= 0.
    """
    return _law("sample", theta, gamma, sigma_sq)


@overload
def sample_to_spike(sample: float, gamma: float, sigma_sq: float = ...) -> float: ...
@overload
def sample_to_spike(sample: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = ...) -> Numbers: ...
def sample_to_spike(sample: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike = 1.0) -> Any:
    """Inverse of :func:`spike_to_sample`; NaN below the edge, where no strength can be told.

    Raises:
        ValueError: for gamma outside (0, 1] or sigma_sq <= 0.
    """
    return _law("strength", sample, gamma, sigma_sq)


@overload
def tracy_widom_cdf(s: float) -> float: ...
@overload
def tracy_widom_cdf(s: ArrayLike) -> Numbers: ...
def tracy_widom_cdf(s: ArrayLike) -> Any:
    """P(TW1 <= s), the limit law of the largest eigenvalue of real noise."""
    return _tracy_widom("cdf", s)


@overload
def tracy_widom_sf(s: float) -> float: ...
@overload
def tracy_widom_sf(s: ArrayLike) -> Numbers: ...
def tracy_widom_sf(s: ArrayLike) -> Any:
    """P(TW1 > s), accurate far into the tail: this is what p-values use."""
    return _tracy_widom("sf", s)


@overload
def tracy_widom_ppf(q: float) -> float: ...
@overload
def tracy_widom_ppf(q: ArrayLike) -> Numbers: ...
def tracy_widom_ppf(q: ArrayLike) -> Any:
    """Quantile of TW1; infinite for 0 and 1.

    Raises:
        ValueError: for q outside [0, 1].
    """
    _levels(q)
    return _tracy_widom("ppf", q)


def _law(what: str, x: ArrayLike, gamma: ArrayLike, sigma_sq: ArrayLike) -> Any:
    parts = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (x, gamma, sigma_sq)))
    found = _native.mp_law(what, *(np.ascontiguousarray(part).ravel() for part in parts))
    return float(found[0]) if parts[0].ndim == 0 else found.reshape(parts[0].shape)


def _tracy_widom(what: str, x: ArrayLike) -> Any:
    array = np.asarray(x, dtype=np.float64)
    found = _native.tracy_widom_law(what, np.ascontiguousarray(array).ravel())
    return float(found[0]) if array.ndim == 0 else found.reshape(array.shape)


def _levels(q: ArrayLike) -> None:
    array = np.asarray(q, dtype=np.float64)
    if bad := array[~((array >= 0) & (array <= 1))].ravel().tolist():
        raise ValueError(f"q: {bad[0]} is not in [0, 1]")
