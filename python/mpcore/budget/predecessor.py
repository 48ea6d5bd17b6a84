"""The layer shares of the predecessor's rule (arXiv 2503.01922), as a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpcore.budget.plain import collect, fit
from mpcore.budget.seb import given, whole_patterns
from mpcore.records import Budget, LayerInfo, Pattern

CYCLES = 34


def rmt2025_shares(fit_error: Mapping[str, float], bulk: Mapping[str, float], cycles: int = CYCLES) -> dict[str, float]:
    """Share of a layer's weights that stays after so many cycles.

    Cycle i takes rho_i (1 - E)^(1.5 / i) b^(1.5 / i) of what is left, rho_i = 0.06 * 1.02^i.

    Args:
        fit_error: layer name -> E, distance of its spectrum to the Marchenko-Pastur law, 0..1.
        bulk: layer name -> b, share of its singular values below the edge, 0..1.
        cycles: how many.

    Raises:
        ValueError: for a number outside 0..1, or a layer without a bulk fraction.

    Example:
        >>> rmt2025_shares({"noise": 0.0, "signal": 0.5}, {"noise": 1.0, "signal": 0.5}, cycles=1)
        {'noise': 0.9388, 'signal': 0.99235}
    """
    shares = {}
    for name, error in fit_error.items():
        likeness = (1 - error) * bulk.get(name, -1.0)
        if not (0 <= error <= 1 and 0 <= likeness <= 1):
            raise ValueError(f"layer {name!r}: fit error {error} and bulk {bulk.get(name)}, wanted shares within 0..1")
        share = 1.0
        for i in range(1, cycles + 1):
            share *= 1 - 0.06 * 1.02**i * likeness ** (1.5 / i)
        shares[name] = share
    return shares


def rmt2025(
    layers: Sequence[LayerInfo],
    fit_error: Mapping[str, float],
    bulk: Mapping[str, float],
    pattern: str | tuple[int, int] | Pattern,
) -> Budget:
    """Shares after as many of the 34 cycles as it takes to reach the total of ``pattern``, rounded to N of M.

    The rule itself removes single weights by magnitude, thresholds singular vectors and shrinks weights without data;
    only its division among the layers is kept. Rounding moves single layers towards the uniform total, as in
    :func:`mpcore.budget.seb`, also where 34 cycles do not get there.

    Args:
        layers: an inventory's layers.
        fit_error: E of every layer that takes the pattern.
        bulk: b of every such layer.
        pattern: N:M that would be used uniformly.
    """
    wanted = Pattern(pattern)
    budgets = [fit(layer, wanted) for layer in layers]
    chosen = [layer for layer, entry in zip(layers, budgets, strict=True) if entry.pattern is not None]
    sizes, total = [layer.parameters for layer in chosen], sum(layer.parameters for layer in chosen)
    errors = {layer.name: fit_error.get(layer.name, -1.0) for layer in chosen}
    shares: dict[str, float] = {}
    for cycles in range(CYCLES + 1):
        shares = rmt2025_shares(errors, bulk, cycles)
        if sum(shares[v.name] * v.parameters for v in chosen) <= wanted.density * total:
            break
    keeps = whole_patterns([shares[layer.name] for layer in chosen], sizes, wanted)
    entries = {
        layer.name: given(layer.name, keep, wanted.group, f"{shares[layer.name]:.4f} by the rule of 2025")
        for layer, keep in zip(chosen, keeps, strict=True)
    }
    return collect("rmt-2025", layers, [entries.get(entry.name, entry) for entry in budgets])
