"""From signals to a pattern per layer: uniform, by spectral edges (SEB), or from a table.

Only arrays and records are needed here. Layers that cannot be cut into groups stay dense, with the reason in words.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpcore.records import Budget, LayerBudget, LayerInfo, Pattern, to_numpy

Array = np.ndarray[Any, Any]


def uniform(layers: Sequence[LayerInfo], pattern: str | tuple[int, int] | Pattern) -> Budget:
    """The same pattern for every layer that takes it.

    Args:
        layers: an inventory's layers.
        pattern: N:M; a layer whose input channels are not a multiple of M stays dense.

    Example:
        >>> fc = LayerInfo("fc", "linear", (8, 770), "linear", prunable=True, permutable=False)
        >>> uniform([fc], "2:4").layers[0].reason
        '770 columns is not a multiple of 4'
    """
    wanted = Pattern(pattern)
    return _budget("uniform", layers, [_fit(layer, wanted) for layer in layers])


def from_table(layers: Sequence[LayerInfo], table: Mapping[str, str | Pattern]) -> Budget:
    """A pattern per layer by name; keys are layer names or globs (``blocks.*.mlp.fc2``), later entries win.

    ``"dense"`` as a pattern leaves the matching layers alone; so does no entry at all.

    Raises:
        ValueError: if a pattern is none, or a key matches no layer.

    Example:
        >>> fc = LayerInfo("fc", "linear", (8, 16), "linear", prunable=True, permutable=False)
        >>> from_table([fc], {"*": "2:4", "fc": "1:4"}).layers[0].pattern
        Pattern(keep=1, group=4)
    """
    patterns = {key: None if value == "dense" else Pattern(value) for key, value in table.items()}
    for key in patterns:
        if not any(fnmatch.fnmatchcase(layer.name, key) for layer in layers):
            raise ValueError(f"pattern table: {key!r} matches no layer; the first are {_some_names(layers)}")
    return _budget("table", layers, [_look_up(layer, patterns) for layer in layers])


def seb(
    layers: Sequence[LayerInfo],
    sigma_plus: Mapping[str, float],
    weights: Mapping[str, Any],
    pattern: str | tuple[int, int] | Pattern,
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

    The paper removes exactly these single weights, and below s = 0.20 takes the tail exponent of the spectrum for the
    signal. Here the signal is always sigma_plus and only the resulting density of each layer is used: it is rounded to
    the nearest N':M of the same M (1 <= N' <= M, M meaning dense), then single layers are moved by one N' as long as
    that brings the number of kept weights nearer to the uniform one, the move that strays least from its density first.

    Args:
        layers: an inventory's layers.
        sigma_plus: edge of every layer that takes the pattern, in units of its weights.
        weights: array of every such layer, of any shape.
        pattern: N:M that would be used uniformly.

    Raises:
        ValueError: if a layer has no edge or no weights, or they are not finite.

    References:
        Berlyand, Bourdais, Owhadi, Shmalo, "Pruning deep neural networks via the Marchenko-Pastur distribution", 2026.
    """
    wanted = Pattern(pattern)
    budgets = [_fit(layer, wanted) for layer in layers]
    chosen = [layer for layer, entry in zip(layers, budgets, strict=True) if entry.pattern is not None]
    if not chosen:
        return _budget("seb", layers, budgets)
    z = _z_scores(chosen, sigma_plus)
    factors = [_layer_weight(layer.role, 1 - wanted.density, z[layer.name]) for layer in chosen]
    shares = _shares([_magnitudes(weights, layer) for layer in chosen], factors, wanted.density)
    keeps = _whole_patterns(shares, [layer.parameters for layer in chosen], wanted)
    given = {
        layer.name: _given(layer.name, keep, wanted.group, f"{share:.4f} by SEB, z of sigma_plus {z[layer.name]:+.2f}")
        for layer, keep, share in zip(chosen, keeps, shares, strict=True)
    }
    return _budget("seb", layers, [given.get(entry.name, entry) for entry in budgets])


def layer_weights(layers: Sequence[LayerInfo], sigma_plus: Mapping[str, float], sparsity: float) -> dict[str, float]:
    """The weight w of every layer at a sparsity, as in :func:`seb`; the smallest |W| / w of all layers go first.

    Args:
        layers: the layers that compete.
        sigma_plus: edge of each, in units of its weights.
        sparsity: share of their weights that goes, 0..1.

    Raises:
        ValueError: if a layer has no finite edge, or the sparsity is no share.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: {sparsity} is not between 0 and 1")
    z = _z_scores(layers, sigma_plus)
    return {layer.name: _layer_weight(layer.role, sparsity, z[layer.name]) for layer in layers}


def _z_scores(layers: Sequence[LayerInfo], sigma_plus: Mapping[str, float]) -> dict[str, float]:
    edges = np.array([_edge(sigma_plus, layer.name) for layer in layers])
    z = (edges - edges.mean()) / (edges.std() or 1.0)
    return {layer.name: float(score) for layer, score in zip(layers, z, strict=True)}


def _budget(method: str, layers: Sequence[LayerInfo], budgets: list[LayerBudget]) -> Budget:
    kept = sum(layer.parameters * entry.density for layer, entry in zip(layers, budgets, strict=True))
    total = sum(layer.parameters for layer in layers)
    return Budget(method, tuple(budgets), kept / total if total else 1.0)


def _fit(layer: LayerInfo, pattern: Pattern) -> LayerBudget:
    """``pattern`` where the layer takes it."""
    if not layer.prunable:
        return LayerBudget(layer.name, None, 1.0, layer.reason or "not prunable")
    columns = layer.shape[1]
    if columns % pattern.group:
        kind = "input channels" if layer.kind == "conv2d" else "columns"
        return LayerBudget(layer.name, None, 1.0, f"{columns} {kind} is not a multiple of {pattern.group}")
    return LayerBudget(layer.name, pattern, pattern.density, f"{pattern} as asked for")


def _look_up(layer: LayerInfo, patterns: Mapping[str, Pattern | None]) -> LayerBudget:
    keys = [key for key in patterns if fnmatch.fnmatchcase(layer.name, key)]
    if not keys:
        return LayerBudget(layer.name, None, 1.0, layer.reason or "not in the table")
    pattern = patterns[keys[-1]]
    if pattern is None:
        return LayerBudget(layer.name, None, 1.0, f"dense in the table ({keys[-1]})")
    entry = _fit(layer, pattern)
    return entry if entry.pattern is None else LayerBudget(layer.name, pattern, pattern.density, f"table: {keys[-1]}")


def _some_names(layers: Sequence[LayerInfo]) -> str:
    return ", ".join(layer.name for layer in layers[:5]) or "none at all"


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
    if sparsity <= 0.20:
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


def _whole_patterns(shares: list[float], sizes: list[int], pattern: Pattern) -> list[int]:
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


def _given(name: str, keep: int, group: int, why: str) -> LayerBudget:
    if keep == group:
        return LayerBudget(name, None, 1.0, f"dense, keeps {why}")
    pattern = Pattern((keep, group))
    return LayerBudget(name, pattern, pattern.density, f"{pattern}, keeps {why}")
