"""Spectral Edge Budgeting: signals of the layers' spectra decide how much each of them gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpcore.budget.plain import collect, fit
from mpcore.records import Budget, LayerBudget, LayerInfo, Pattern, to_numpy

Array = np.ndarray[Any, Any]

_SMALL = 0.20  # sparsity of the first regime, in which the tail exponent is the signal


def seb(
    layers: Sequence[LayerInfo],
    sigma_plus: Mapping[str, float],
    weights: Mapping[str, Any],
    pattern: str | tuple[int, int] | Pattern,
    *,
    hill: Mapping[str, float] | None = None,
    signal: Mapping[str, float] | None = None,
) -> Budget:
    """Spectral Edge Budgeting: layers with a larger Marchenko-Pastur edge give more, at the uniform total.

    With s = 1 - N/M, z the z-score of sigma_plus over the layers and d(s) = max(0, 1 - s / s_d), a layer's weight is
    w = max(0.1, 1 + beta d(s) z) and the weights with the smallest |W| / w of all layers are counted as removed:

    ========== ==================================== =====
    s          beta                                 s_d
    ========== ==================================== =====
    <= 0.20    0.5                                  0.30
    <= 0.40    1.0                                  0.50
    <= 0.55    1.25                                 0.70
    above      attention 1.0, MLP 2.0, others 1.5   0.85
    ========== ==================================== =====

    The paper removes exactly these single weights, and up to s = 0.20 z is that of the tail exponent of the spectrum,
    not of sigma_plus. Here only the resulting density of each layer is used: it is rounded to
    the nearest N':M of the same M (1 <= N' <= M, M meaning dense), then single layers are moved by one N' as long as
    that brings the number of kept weights nearer to the uniform one, the move that strays least from its density first.

    Args:
        layers: an inventory's layers.
        sigma_plus: edge of every layer that takes the pattern, in units of its weights.
        weights: array of every such layer, of any shape.
        pattern: N:M that would be used uniformly.
        hill: :func:`hill_exponent` of every such layer, the signal up to s = 0.20; None: sigma_plus there too.
        signal: replaces sigma_plus and hill at all sparsities, such as :func:`corrected_signal`; larger gives more.

    Raises:
        ValueError: if a layer has no edge or no weights, or they are not finite.

    References:
        Berlyand, Bourdais, Owhadi, Shmalo, "Pruning deep neural networks via the Marchenko-Pastur distribution", 2026.
    """
    wanted = Pattern(pattern)
    budgets = [fit(layer, wanted) for layer in layers]
    chosen = [layer for layer, entry in zip(layers, budgets, strict=True) if entry.pattern is not None]
    if not chosen:
        return collect("seb", layers, budgets)
    z = _signal(chosen, sigma_plus, hill, signal, 1 - wanted.density)
    factors = [_layer_weight(layer.role, 1 - wanted.density, z[layer.name]) for layer in chosen]
    shares = _shares([_magnitudes(weights, layer) for layer in chosen], factors, wanted.density)
    keeps = whole_patterns(shares, [layer.parameters for layer in chosen], wanted)
    entries = {
        layer.name: given(layer.name, keep, wanted.group, f"{share:.4f} by SEB, z {z[layer.name]:+.2f}")
        for layer, keep, share in zip(chosen, keeps, shares, strict=True)
    }
    return collect("seb", layers, [entries.get(entry.name, entry) for entry in budgets])


def layer_weights(
    layers: Sequence[LayerInfo],
    sigma_plus: Mapping[str, float],
    sparsity: float,
    *,
    hill: Mapping[str, float] | None = None,
    signal: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The weight w of every layer at a sparsity, as in :func:`seb`; the smallest |W| / w of all layers go first.

    Args:
        layers: the layers that compete.
        sigma_plus: edge of each, in units of its weights.
        sparsity: share of their weights that goes, 0..1.
        hill: tail exponents, the signal up to 0.20; None: sigma_plus there too.
        signal: replaces both.

    Raises:
        ValueError: if a layer has no finite edge, or the sparsity is no share.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: {sparsity} is not between 0 and 1")
    z = _signal(layers, sigma_plus, hill, signal, sparsity)
    return {layer.name: _layer_weight(layer.role, sparsity, z[layer.name]) for layer in layers}


def hill_exponent(values: Any) -> float:
    """Tail exponent of a spectrum, 1 + 1 / mean_i<=k (log l_i - log l_(k+1)), l = s^2 falling, k = min(20, r - 1).

    Large for a bulk that ends sharply, small for a heavy tail; infinite where the k + 1 largest are equal.

    Args:
        values: (r,) positive singular values in any order, at least two.

    Raises:
        ValueError: if fewer than two are positive.

    Example:
        >>> round(hill_exponent(np.arange(1.0, 41.0) ** -0.5), 3)
        2.078

    References:
        Hill, "A simple general approach to inference about the tail of a distribution", 1975.
    """
    singular = to_numpy(values, "values", ndim=1).astype(np.float64)
    logs = 2 * np.log(np.sort(singular[singular > 0])[::-1])
    if logs.size < 2:
        raise ValueError(f"values: {logs.size} are positive, wanted at least 2")
    k = min(20, logs.size - 1)
    mean = float((logs[:k] - logs[k]).mean())
    return 1 + 1 / mean if mean > 0 else float("inf")


def corrected_signal(
    sigma: Mapping[str, float], input_norm: Mapping[str, float], gain: Mapping[str, float]
) -> dict[str, float]:
    """-log(sigma |v| L) of every layer, for ``signal``: what sigma_plus leaves out of the bound it stands for.

    Removing noise of deviation sigma from a layer moves the logits by at most L |v|_2 sigma times a logarithm
    (:func:`mpcore.certify.gaussian_effect`; sigma = sqrt(g / n)). sigma_plus grows with the shape of a layer and knows
    neither the norm of its inputs nor how strongly the logits answer; and a layer with a larger effect has to give
    less, not more, so the signal has a minus.

    Args:
        sigma: standard deviation of the noise in the weights, ``EdgeFit.sigma_sq ** 0.5``.
        input_norm: mean |v|_2 of the inputs.
        gain: L, change of the logits per change of the layer's output, measured.

    A layer without any effect counts as one with the smallest effect found.

    Raises:
        ValueError: if a factor is missing, negative or not finite.

    Example:
        >>> signal = corrected_signal({"a": 0.5, "b": 0.5}, {"a": 2.0, "b": 4.0}, {"a": 1.0, "b": 1.0})
        >>> signal["a"] > signal["b"]
        True
    """
    nan = float("nan")
    effect = {name: float(sigma[name]) * input_norm.get(name, nan) * gain.get(name, nan) for name in sigma}
    for name, product in effect.items():
        if not (np.isfinite(product) and product >= 0):
            raise ValueError(f"signal: sigma |v| L of layer {name!r} is {product}, wanted a finite number >= 0")
    smallest = min((product for product in effect.values() if product > 0), default=1.0)
    return {name: -float(np.log(max(product, smallest))) for name, product in effect.items()}


def _signal(
    layers: Sequence[LayerInfo],
    sigma_plus: Mapping[str, float],
    hill: Mapping[str, float] | None,
    signal: Mapping[str, float] | None,
    sparsity: float,
) -> dict[str, float]:
    """z-scores over the layers of the signal that is asked for at this sparsity."""
    if signal is not None:
        return _z_scores(np.array([_value(signal, "signal", layer.name) for layer in layers]), layers)
    if hill is not None and sparsity <= _SMALL:
        return _z_scores(np.array([_value(hill, "hill", layer.name) for layer in layers]), layers)
    return _z_scores(np.array([_edge(sigma_plus, layer.name) for layer in layers]), layers)


def _z_scores(edges: Array, layers: Sequence[LayerInfo]) -> dict[str, float]:
    z = (edges - edges.mean()) / (edges.std() or 1.0)
    return {layer.name: float(score) for layer, score in zip(layers, z, strict=True)}


def _value(signal: Mapping[str, float], kind: str, name: str) -> float:
    if not np.isfinite(signal.get(name, np.nan)):
        raise ValueError(f"{kind}: {signal.get(name)} for layer {name!r}, wanted a finite number")
    return float(signal[name])


def _edge(sigma_plus: Mapping[str, float], name: str) -> float:
    if name not in sigma_plus:
        raise ValueError(f"sigma_plus: no edge for layer {name!r}")
    edge = float(sigma_plus[name])
    if not (np.isfinite(edge) and edge >= 0):
        raise ValueError(f"sigma_plus: edge of layer {name!r} is {edge}, wanted a finite number >= 0")
    return edge


def _magnitudes(weights: Mapping[str, Any], layer: LayerInfo) -> Array:
    if layer.name not in weights:
        raise ValueError(f"weights: none for layer {layer.name!r}")
    values: Array = np.abs(to_numpy(weights[layer.name], f"weights[{layer.name!r}]")).ravel().astype(np.float32)
    if values.size != layer.parameters:
        raise ValueError(f"weights[{layer.name!r}]: {values.size} entries, the inventory says {layer.parameters}")
    return values


def _layer_weight(role: str, sparsity: float, z: float) -> float:
    """The layer's w = max(0.1, 1 + beta d(s) z): above 1 where it should give more."""
    if sparsity <= _SMALL:
        beta, vanishes = 0.5, 0.30
    elif sparsity <= 0.40:
        beta, vanishes = 1.0, 0.50
    elif sparsity <= 0.55:
        beta, vanishes = 1.25, 0.70
    else:
        beta, vanishes = {"attention": 1.0, "mlp": 2.0}.get(role, 1.5), 0.85
    return max(0.1, 1 + beta * max(0.0, 1 - sparsity / vanishes) * z)


def _shares(magnitudes: list[Array], factors: list[float], density: float) -> list[float]:
    """Share each layer keeps when the smallest |W| / w of all are removed down to ``density``."""
    scores = [values / np.float32(factor) for values, factor in zip(magnitudes, factors, strict=True)]
    everything = np.concatenate(scores)
    removed = round((1 - density) * everything.size)
    threshold = np.partition(everything, removed)[removed]
    return [float(np.count_nonzero(score >= threshold)) / score.size for score in scores]


def whole_patterns(shares: list[float], sizes: list[int], pattern: Pattern) -> list[int]:
    """N' of every layer: nearest to its share, then moved one by one towards the uniform total."""
    group, weight = pattern.group, np.array(sizes, dtype=np.int64)
    wanted = np.array(shares) * group
    keep = np.clip(np.rint(wanted), 1, group).astype(np.int64)
    excess = int((weight * (keep - pattern.keep)).sum())  # kept weights above the uniform total, times M
    while excess:
        step = -1 if excess > 0 else 1
        moved = keep + step
        nearer = (moved >= 1) & (moved <= group) & (np.abs(excess + step * weight) < abs(excess))
        if not nearer.any():
            break
        strain = np.where(nearer, weight * ((moved - wanted) ** 2 - (keep - wanted) ** 2), np.inf)
        choice = int(strain.argmin())
        keep[choice] += step
        excess += step * int(weight[choice])
    return [int(value) for value in keep]


def given(name: str, keep: int, group: int, why: str) -> LayerBudget:
    """``keep`` of ``group``, or dense, with its reason."""
    if keep == group:
        return LayerBudget(name, None, 1.0, f"dense, keeps {why}")
    pattern = Pattern((keep, group))
    return LayerBudget(name, pattern, pattern.density, f"{pattern}, keeps {why}")
