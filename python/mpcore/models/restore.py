"""Spectral Edge Reallocation (SER): prune a little too much, then give back what deserves it most.

One step of the prune-restore schedule of Berlyand et al., on arrays. Their selection trains the removed entries alone
for an epoch and ranks them by how far they moved; here the ranking is an argument, |W| without data. The patterns are
unstructured: N:M masks come afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mpcore.records import to_numpy

Array = np.ndarray[Any, Any]

Priority = Literal["protected", "pruned"]


@dataclass(frozen=True)
class Reallocation:
    """Masks of one step, by layer: what is ``kept`` in the end, and what was ``restored`` to it (a part of it)."""

    kept: dict[str, Array]
    restored: dict[str, Array]

    @property
    def sparsity(self) -> float:
        """Share of all weights that is removed."""
        size = sum(mask.size for mask in self.kept.values())
        return 1 - sum(int(np.count_nonzero(mask)) for mask in self.kept.values()) / size


def reallocate(
    weights: Mapping[str, Any],
    layer_weights: Mapping[str, float],
    sparsity: float,
    *,
    overshoot: float = 0.03,
    importance: Mapping[str, Any] | None = None,
    priority: Priority = "protected",
) -> Reallocation:
    """Remove down to ``sparsity + overshoot`` by the smallest |W| / w, restore ``overshoot`` by the largest score.

    An entry that was removed scores importance * rho, with rho = 1/w for ``priority="protected"`` (layers that the
    edges protect get more back; the text of the paper) and rho = w for ``"pruned"`` (its algorithm box). Restored
    entries keep the value they had. Without an ``importance`` of its own, |W| / w decides both ways: then "protected"
    is plain pruning to ``sparsity``.

    Counts are exact: of ``size`` weights in all, round((1 - sparsity) size) are kept. Ties go to the earlier layer and
    lower index.

    Args:
        weights: layer name -> array of any shape.
        layer_weights: layer name -> w > 0, :func:`mpcore.budget.layer_weights`.
        sparsity: share of all weights removed in the end.
        overshoot: share of all weights removed and given back.
        importance: layer name -> scores >= 0 in the weights' shape, such as how far training moved each entry; None
            takes |W|.
        priority: which layers' entries come back first.

    Raises:
        ValueError: if names or shapes differ, a layer weight is not positive, or the shares leave 0..1.

    Example:
        >>> step = reallocate({"a": np.arange(1.0, 11.0)}, {"a": 1.0}, 0.5, overshoot=0.2)
        >>> step.kept["a"].astype(int), np.flatnonzero(step.restored["a"])
        (array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), array([5, 6]))

    References:
        Berlyand, Bourdais, Owhadi, Shmalo, "Pruning deep neural networks via the Marchenko-Pastur distribution", 2026.
    """
    if priority not in ("protected", "pruned"):
        raise ValueError(f"priority: {priority!r}, wanted 'protected' or 'pruned'")
    if not 0 <= sparsity <= sparsity + overshoot <= 1:
        raise ValueError(f"sparsity: {sparsity} + overshoot {overshoot}, wanted shares within 0..1")
    magnitudes = {name: np.abs(to_numpy(value, f"weights[{name!r}]")) for name, value in weights.items()}
    scores = magnitudes if importance is None else _matching(importance, magnitudes)
    factors = _factors(layer_weights, magnitudes)
    by_magnitude = np.concatenate([(m / factors[name]).ravel() for name, m in magnitudes.items()])
    protect = priority == "protected"
    ranked = (s / factors[name] if protect else s * factors[name] for name, s in scores.items())
    by_importance = np.concatenate([values.ravel() for values in ranked])
    final = round((1 - sparsity) * by_magnitude.size)
    first = min(final, round((1 - sparsity - overshoot) * by_magnitude.size))
    kept = _largest(by_magnitude, first)
    restored = _largest(np.where(kept, -np.inf, by_importance), final - first)
    return Reallocation(_split(kept | restored, magnitudes), _split(restored, magnitudes))


def _largest(scores: Array, count: int) -> Array:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def _split(mask: Array, like: Mapping[str, Array]) -> dict[str, Array]:
    ends = np.cumsum([array.size for array in like.values()])
    parts = np.split(mask, ends[:-1])
    return {name: part.reshape(array.shape) for part, (name, array) in zip(parts, like.items(), strict=True)}


def _factors(layer_weights: Mapping[str, float], layers: Mapping[str, Array]) -> dict[str, float]:
    if not layers:
        raise ValueError("weights: no layer at all")
    for name in layers:
        if not layer_weights.get(name, 0.0) > 0:
            raise ValueError(f"layer_weights: {layer_weights.get(name)} for layer {name!r}, wanted a number > 0")
    return {name: float(layer_weights[name]) for name in layers}


def _matching(importance: Mapping[str, Any], layers: Mapping[str, Array]) -> dict[str, Array]:
    scores = {}
    for name, array in layers.items():
        if name not in importance:
            raise ValueError(f"importance: none for layer {name!r}")
        scores[name] = to_numpy(importance[name], f"importance[{name!r}]")
        if scores[name].shape != array.shape or (scores[name] < 0).any():
            raise ValueError(f"importance[{name!r}]: wanted scores >= 0 of shape {array.shape}")
    return scores
