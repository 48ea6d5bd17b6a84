"""Bounds that hold with probability 1 - delta where the removed part R is random noise.

They assume that R is independent of the inputs v_s and of the constants L_s. Weights that were learned from the data
are not, nor are the small entries that a magnitude mask picks out of them; these functions are for theory experiments,
for noise that was added on purpose, and for comparing layers. What holds for a trained network is
:func:`mpcore.certify.certify`.

References:
    Berlyand, Bourdais, Owhadi, Shmalo, "Pruning deep neural networks via the Marchenko-Pastur distribution", 2026.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcore.arrays import to_count, to_numpy
from mpcore.certify.arithmetic import Vector, number, numbers, product


def gaussian_effect(g: float, rows: int, input_norms: Any, lipschitz: Any, *, delta: float = 0.05) -> Vector:
    """eta_s = L_s |v_s|_2 sqrt(2 g log(2 n |T| / delta) / n), n = rows, for R_ij ~ N(0, g / n) independent: (samples,).

    With probability 1 - delta no logit of any sample moves by more when R is removed; 2 mean(eta) bounds the change of
    the cross entropy, and the labels of :func:`mpcore.certify.margin_stable` stay. For several layers give each a
    delta_j with sum delta_j <= delta.

    Args:
        g: n times the variance of an entry, >= 0.
        rows: n >= 1, outputs of the layer.
        input_norms: |v_s|_2, (samples,).
        lipschitz: L_s, a number or (samples,), independent of R.
        delta: probability that the bound fails, in (0, 1).

    Example:
        >>> gaussian_effect(1.0, 100, np.array([1.0, 2.0]), 1.0, delta=0.1).round(4)
        array([0.4073, 0.8146])
    """
    return sub_gaussian_effect(g, rows, input_norms, lipschitz, constant=0.5, delta=delta)


def sub_gaussian_effect(
    g: float, rows: int, input_norms: Any, lipschitz: Any, *, constant: float, delta: float = 0.05
) -> Vector:
    """:func:`gaussian_effect` for rows r_i of R with P(|<r_i, v>| > t) <= 2 exp(-c n t^2 / (g |v|_2^2)) for every v.

    L_s |v_s|_2 sqrt(g log(2 n |T| / delta) / (c n)); ``constant`` is c > 0, 1/2 for normal and for bounded symmetric
    +-sqrt(g / n) entries.
    """
    if not 0 < constant < math.inf:
        raise ValueError(f"constant: {constant} is not positive and finite")
    return _effect(math.sqrt(number(g, "g")), rows, input_norms, lipschitz, constant, delta)


def mp_edge_effect(
    sigma_plus: float, shape: tuple[int, int], input_norms: Any, lipschitz: Any, *, delta: float = 0.05
) -> Vector:
    """:func:`gaussian_effect` in terms of the Marchenko-Pastur edge of R, sigma_plus = sqrt(g) (1 + sqrt(m / n)).

    Args:
        sigma_plus: edge of the singular values of R, :func:`mpcore.fit_edge`, >= 0.
        shape: (n, m) = (rows, columns) of R.
        input_norms: |v_s|_2, (samples,).
        lipschitz: L_s, a number or (samples,).
        delta: probability that the bound fails, in (0, 1).

    Example:
        >>> mp_edge_effect(2.0, (100, 100), np.array([1.0, 2.0]), 1.0, delta=0.1).round(4)
        array([0.4073, 0.8146])
    """
    rows, columns = _sides(shape)
    root = number(sigma_plus, "sigma_plus") / (1 + math.sqrt(columns / rows))
    return _effect(root, rows, input_norms, lipschitz, 0.5, delta)


def support_threshold(g: float, shape: tuple[int, int], *, delta: float = 0.05) -> float:
    """Bound sqrt(2 g log(2 N M / delta) / N) of all entries of noise N(0, g / N), with probability 1 - delta.

    ``shape`` is (N, M), N the rows that set the scale of the noise.
    """
    rows, columns = _sides(shape)
    return float(product(math.sqrt(number(g, "g")), _spread(2 * rows * columns, delta, 0.5 * rows)))


def recover_support(weight: Any, g: float, *, delta: float = 0.05) -> npt.NDArray[np.bool_]:
    """Entries of W = S + R above :func:`support_threshold` t, for R_ij ~ N(0, g / N) independent and S fixed.

    With probability 1 - delta it holds every |S_ij| > 2 t and nothing outside the support of S: the support itself
    where no entry of S is in (0, 2 t].

    Args:
        weight: W, (N, M).
        g: N times the variance of the noise, >= 0.
        delta: probability of failure, in (0, 1).

    Example:
        >>> recover_support(np.array([[0.1, 5.0], [-4.0, 0.0]]), 0.02).tolist()
        [[False, True], [True, False]]
    """
    W = to_numpy(weight, "weight", ndim=2)
    found: npt.NDArray[np.bool_] = np.abs(W) > support_threshold(g, W.shape, delta=delta)
    return found


def _effect(root: float, rows: int, input_norms: Any, lipschitz: Any, constant: float, delta: float) -> Vector:
    """The bound of :func:`sub_gaussian_effect` from sqrt(g): g itself may be too small for float64."""
    norms = np.atleast_1d(numbers(input_norms, "input_norms", (-1,)))
    constants = numbers(lipschitz, "lipschitz", (len(norms),), infinite=True)
    rows = to_count(rows, "rows", least=1)
    return product(constants, norms, root, _spread(2 * rows * len(norms), delta, constant * rows))


def _spread(events: int, delta: float, scale: float) -> float:
    """sqrt(log(events / delta) / scale)."""
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta} is not between 0 and 1")
    return math.sqrt((math.log(events) - math.log(delta)) / scale)


def _sides(shape: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(shape, Sequence) or len(shape) != 2 or not min(shape) >= 1:
        raise ValueError(f"shape: {shape!r}, wanted two numbers >= 1")
    return to_count(shape[0], "shape[0]"), to_count(shape[1], "shape[1]")
