"""Patterns chosen per layer from measured costs, under one budget of weights or multiply-accumulates, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpcore.budget.plain import collect, fit
from mpcore.records import Budget, LayerBudget, LayerInfo, Pattern

Array = np.ndarray[Any, Any]


def fitting(layer: LayerInfo, candidates: Sequence[Pattern]) -> list[Pattern]:
    """The candidates whose groups divide the layer's input channels; none for a layer that is not pruned."""
    return [pattern for pattern in candidates if fit(layer, pattern).pattern is not None]


def reference_pattern(layer: LayerInfo, pattern: Pattern, candidates: Sequence[Pattern]) -> Pattern | None:
    """``pattern`` where the layer takes it, else the fitting candidate of the nearest density; None without one."""
    if fit(layer, pattern).pattern is not None:
        return pattern
    found = fitting(layer, candidates)
    return min(found, key=lambda p: abs(p.density - pattern.density), default=None)


def knapsack(
    layers: Sequence[LayerInfo],
    costs: Mapping[str, Mapping[Pattern, float]],
    pattern: str | tuple[int, int] | Pattern,
    *,
    sizes: Mapping[str, int] | None = None,
) -> Budget:
    """Patterns of the least total cost that take no more than ``pattern`` everywhere would.

    Staying dense costs nothing and takes the whole size of a layer; a pattern takes N/M of it. The choice is optimal
    for the given costs (:func:`solve_choices`), which add up over layers by assumption.

    Args:
        layers: an inventory's layers; those without costs stay dense and outside the budget.
        costs: layer name -> pattern -> cost >= 0, such as the KL divergence that pruning this layer alone causes.
        pattern: N:M that would be used uniformly; a layer that does not take it counts as dense in the budget.
        sizes: layer name -> what the layer takes when dense, such as multiply-accumulates; None: its weights.

    Raises:
        ValueError: for a cost that is negative or not finite, or a name without a size.

    Example:
        >>> a, b = (LayerInfo(n, "linear", (8, 16), "linear", prunable=True, permutable=False) for n in "ab")
        >>> half, quarter, three = Pattern("2:4"), Pattern("1:4"), Pattern("3:4")
        >>> costs = {"a": {quarter: 1.0, half: 0.5, three: 0.1}, "b": {quarter: 9.0, half: 4.0, three: 1.0}}
        >>> [str(entry.pattern) for entry in knapsack([a, b], costs, "2:4").layers]
        ['1:4', '3:4']
    """
    wanted = Pattern(pattern)
    chosen = [layer for layer in layers if costs.get(layer.name)]
    options: list[list[Pattern | None]] = [[None, *costs[layer.name]] for layer in chosen]
    dense = [layer.parameters if sizes is None else _size(sizes, layer.name) for layer in chosen]
    # Sizes in units that make every share whole, so that the budget is met without rounding.
    unit = int(np.lcm.reduce([1, wanted.group, *(p.group for entry in options for p in entry if p is not None)]))
    shares = [[unit if p is None else unit * p.keep // p.group for p in entry] for entry in options]
    weights = [[size * share for share in entry] for size, entry in zip(dense, shares, strict=True)]
    prices = [[0.0, *(_cost(costs, layer.name, p) for p in costs[layer.name])] for layer in chosen]
    uniform = (unit * wanted.keep // wanted.group if fit(layer, wanted).pattern else unit for layer in chosen)
    limit = sum(size * share for size, share in zip(dense, uniform, strict=True))
    picks = solve_choices(prices, weights, limit)
    given = {
        layer.name: _entry(layer.name, entry[pick], price[pick])
        for layer, entry, price, pick in zip(chosen, options, prices, picks, strict=True)
    }
    stay = {layer.name: LayerBudget(layer.name, None, 1.0, layer.reason or "no cost was measured") for layer in layers}
    return collect("knapsack", layers, [given.get(layer.name, stay[layer.name]) for layer in layers])


def solve_choices(costs: Sequence[Sequence[float]], weights: Sequence[Sequence[int]], limit: int) -> list[int]:
    """One option of every item, of the least total cost with a total weight of at most ``limit`` (exact).

    Multiple-choice knapsack: dynamic programming over the undominated (weight, cost) sums, without those whose
    Lagrangian lower bound exceeds the best known solution. Ties go to the smaller weight, then to earlier options.

    Args:
        costs: of every item's options, >= 0; at least one option each.
        weights: integers >= 0 of the same shape.
        limit: of the total weight.

    Raises:
        ValueError: if even the lightest options exceed the limit, or the costs' sum is infinite.

    Example:
        >>> solve_choices([[0.0, 1.0], [0.0, 3.0]], [[4, 2], [4, 1]], 6)
        [1, 0]
    """
    price = [np.asarray(entry, np.float64) for entry in costs]
    weight = [np.asarray(entry, np.int64) for entry in weights]
    lightest = np.cumsum([0, *(int(entry.min()) for entry in reversed(weight))])[::-1]  # of the items from k on
    if lightest[0] > limit:
        raise ValueError(f"limit: {limit} is below {lightest[0]}, the lightest choice")
    slope, best = _multiplier(price, weight, limit)
    rest = [float((c + slope * w).min()) for c, w in zip(price, weight, strict=True)]
    left = np.cumsum([0.0, *reversed(rest)])[::-1]  # Lagrangian cost of the items from k on
    tolerance = 1e-9 * max(1.0, abs(best))
    total, cost = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[Array, Array]] = []
    for k, (c, w) in enumerate(zip(price, weight, strict=True)):
        sums, sorts = (total[:, None] + w).ravel(), (cost[:, None] + c).ravel()
        order = np.lexsort((sorts, sums))
        cheapest = np.minimum.accumulate(sorts[order])
        keep = np.append(True, cheapest[1:] < cheapest[:-1])  # lighter ones are all dearer
        bound = sorts[order] + slope * (sums[order] - limit) + left[k + 1]
        keep &= (sums[order] + lightest[k + 1] <= limit) & (bound <= best + tolerance)
        order = order[keep]
        history.append((order // len(w), order % len(w)))
        total, cost = sums[order], sorts[order]
    return _trace(history, int(cost.argmin()))


def _trace(history: list[tuple[Array, Array]], state: int) -> list[int]:
    picks = []
    for parents, options in reversed(history):
        picks.append(int(options[state]))
        state = int(parents[state])
    return picks[::-1]


def _multiplier(price: list[Array], weight: list[Array], limit: int) -> tuple[float, float]:
    """Price of one unit of weight at which the cheapest options just fit, and the cost of these feasible options."""

    def choose(slope: float) -> tuple[int, float]:
        picks = [int(np.lexsort((w, c + slope * w))[0]) for c, w in zip(price, weight, strict=True)]
        pairs = [(int(w[i]), float(c[i])) for c, w, i in zip(price, weight, picks, strict=True)]
        return sum(w for w, _ in pairs), sum(c for _, c in pairs)

    total, cost = choose(0.0)
    if total <= limit:
        return 0.0, cost
    # An option heavier by one is never worth more than all costs together: this slope picks the lightest options.
    low, high, highest = 0.0, 1.0, 1.0 + sum(float(c.max()) for c in price)
    if not np.isfinite(highest):
        raise ValueError("costs: their sum is outside float64")
    while (fits := choose(high))[0] > limit and high < highest:
        low, high = high, min(2 * high, highest)
    best = fits[1]
    for _ in range(80):
        middle = (low + high) / 2
        total, cost = choose(middle)
        if total <= limit:
            high, best = middle, min(best, cost)
        else:
            low = middle
    return high, best


def _size(sizes: Mapping[str, int], name: str) -> int:
    if name not in sizes or sizes[name] < 0:
        raise ValueError(f"sizes: {sizes.get(name)} for layer {name!r}, wanted an integer >= 0")
    return int(sizes[name])


def _cost(costs: Mapping[str, Mapping[Pattern, float]], name: str, pattern: Pattern) -> float:
    cost = float(costs[name][pattern])
    if not (np.isfinite(cost) and cost >= 0):
        raise ValueError(f"costs: {cost} for layer {name!r} at {pattern}, wanted a finite number >= 0")
    return cost


def _entry(name: str, pattern: Pattern | None, cost: float) -> LayerBudget:
    if pattern is None:
        return LayerBudget(name, None, 1.0, "dense by the knapsack")
    return LayerBudget(name, pattern, pattern.density, f"{pattern} by the knapsack, cost {cost:.3g}")
