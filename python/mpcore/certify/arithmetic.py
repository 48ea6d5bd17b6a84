"""What the bounds share: one way of checking numbers, and products that leave float64 at their end or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcore.arrays import to_numpy, to_real

Vector = npt.NDArray[np.float64]

SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)
EPSILON = float(np.finfo(np.float64).eps)
_NOTHING = -10_000  # below the exponent of every product of two float64


def numbers(
    value: Any, name: str, shape: tuple[int, ...] = (), *, least: float = 0.0, infinite: bool = False
) -> Vector:
    """A number, or an array of exactly ``shape``, as float64; nothing else is broadcast.

    Args:
        value: a number, a sequence or an array, of integers or floating point.
        name: how errors call it.
        shape: wanted; -1 takes any length.
        least: smallest that is accepted.
        infinite: accept infinity.

    Raises:
        ValueError: for another shape, NaN, or a number that is out of range.
        TypeError: for anything that is not a number.
    """
    array = _float64(value, name)
    if array.ndim and not _fits(array.shape, shape):
        lengths = tuple("samples" if length < 0 else length for length in shape)
        wanted = f" or shape {lengths}".replace("'", "") if shape else ""
        raise ValueError(f"{name}: shape {array.shape}, wanted a number{wanted}")
    wrong = ~(array >= least) if infinite else ~((array >= least) & np.isfinite(array))
    if wrong.any():
        limit = f" >= {least:g}" if least > -math.inf else ""
        raise ValueError(f"{name}: {float(array[wrong][0])} is not a {'' if infinite else 'finite '}number{limit}")
    return array


def number(value: Any, name: str, *, infinite: bool = False) -> float:
    """A single number >= 0, checked as by :func:`numbers`."""
    return float(numbers(value, name, infinite=infinite))


def share(theta: float) -> float:
    """A share of one, theta."""
    if not 0 <= to_real(theta, "theta") <= 1:
        raise ValueError(f"theta: {theta} is not between 0 and 1")
    return theta


def matrix(value: Any, name: str) -> Vector:
    """(rows, columns) in float64, finite."""
    return to_numpy(value, name, ndim=2).astype(np.float64)


def product(*factors: Any, exponent: Any = 0) -> Vector:
    """The product of factors >= 0 times 2^exponent, entry by entry, for upper bounds.

    No partial product overflows or underflows. The result is 0 where a factor is 0, be another infinite, and nowhere
    else: below the smallest normal number it is rounded up.

    Example:
        >>> float(product(1e200, 1e200, 1e-300)), float(product(1e-200, 1e-200)), float(product(0.0, math.inf))
        (1e+100, 5e-324, 0.0)
    """
    total, power, zero = np.asarray(1.0), np.asarray(exponent, np.int64), np.asarray(False)
    with np.errstate(all="ignore"):
        for factor in factors:
            mantissa, shift = np.frexp(np.asarray(factor, np.float64))
            total, carry = np.frexp(total * mantissa)
            power, zero = power + shift + carry, zero | (np.asarray(factor) == 0)
        result = np.ldexp(total, np.clip(power, -5000, 5000).astype(np.intc))
    up = np.where(result < SMALLEST_NORMAL, np.nextafter(result, math.inf), result)
    return np.where(zero, 0.0, up)


def within_range(value: float, name: str) -> float:
    """``value``, refused where it overflowed."""
    if not math.isfinite(value):
        raise ValueError(f"{name} is outside float64")
    return value


def scaled(values: Vector) -> tuple[Vector, int]:
    """``(s, e)`` with values = s 2^e and the largest |s| in [0.5, 1), or 0."""
    exponent = int(np.frexp(np.abs(values).max())[1])
    return np.ldexp(values, -exponent), exponent


def largest_sum(W: Vector) -> tuple[float, int]:
    """``(m, e)`` with max_i sum_j |W_ij| = m 2^e."""
    small, exponent = scaled(W)
    return float(np.abs(small).sum(axis=1).max()), exponent


def joined(norms: Sequence[tuple[float, int]]) -> float:
    """The product of the m 2^e."""
    return float(product(*(m for m, _ in norms), exponent=sum(e for _, e in norms)))


def largest_products(R: Vector, V: Vector) -> tuple[Vector, npt.NDArray[np.int64]]:
    """``(m, e)`` with max_i |(R v_s)_i| <= m 2^e, (samples,), whatever overflows or underflows in the plain product.

    m 2^e is the computed maximum plus what rounding can hide, columns * eps * sum_j |R_ij v_j| (Higham 2002, 3.1), so
    that rows whose terms cancel are not taken for 0.

    Args:
        R: (rows, columns), finite.
        V: (samples, columns) or (samples, tokens, columns), finite.
    """
    with np.errstate(all="ignore"):
        hidden = R.shape[1] * EPSILON * (np.abs(V) @ np.abs(R).T)
        reach: Vector = (np.abs(V @ R.T) + hidden).reshape(len(V), -1).max(axis=1)
    exponents = np.zeros(len(V), np.int64)
    # Above 1e-290 what underflowed in a sum is too small to be seen; a NaN is neither.
    again = np.flatnonzero(~((reach > 1e-290) & (reach < math.inf)))
    if len(again):
        meet = (V[again] != 0).astype(np.float32) @ (R != 0).astype(np.float32).T > 0
        reach[again] = 0.0
        for sample in again[meet.reshape(len(again), -1).any(axis=1)]:
            found = (_term_by_term(R, v) for v in np.atleast_2d(V[sample]))
            reach[sample], exponents[sample] = max(found, key=_size)
    return reach, exponents


def _term_by_term(R: Vector, v: Vector) -> tuple[float, int]:
    """The same of one v, 0.5 <= m < 1 or m = 0, every term scaled by the largest of its row."""
    (rows, of_rows), (entries, of_entries) = np.frexp(R), np.frexp(v)
    terms = rows * entries
    exponents = np.where(terms != 0, of_rows + of_entries, _NOTHING)
    highest = exponents.max(axis=1, keepdims=True)
    terms = np.ldexp(terms, exponents - highest)
    hidden = R.shape[1] * EPSILON * np.abs(terms).sum(axis=1)
    mantissa, shift = np.frexp(np.abs(terms.sum(axis=1)) + hidden)
    exponent = np.where(mantissa > 0, shift + highest[:, 0], _NOTHING)
    return max(zip(mantissa.tolist(), exponent.tolist(), strict=True), key=_size)


def _size(found: tuple[float, int]) -> tuple[int, float]:
    """Orders m 2^e with 0.5 <= m < 1, and zeros below all."""
    return found[::-1]


def _float64(value: Any, name: str) -> Vector:
    if not hasattr(value, "__array__") and not hasattr(value, "__dlpack__"):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "iu":
        value = value.astype(np.float64)
    return to_numpy(value, name, finite=False).astype(np.float64)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))
