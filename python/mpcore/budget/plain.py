"""The same pattern everywhere, patterns from a table, and what all budgets share."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from mpcore.records import Budget, LayerBudget, LayerInfo, Pattern


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
    return collect("uniform", layers, [fit(layer, wanted) for layer in layers])


def from_table(layers: Sequence[LayerInfo], table: Mapping[str, str | Pattern]) -> Budget:
    """A pattern per layer by name; keys are layer names or globs (``blocks.*.mlp.fc2``), later entries win.

    ``"dense"`` as a pattern leaves the matching layers alone; so does no entry at all.

    Raises:
        ValueError: if a pattern is none, a key matches no layer, or is the full name of one that is not pruned.

    Example:
        >>> fc = LayerInfo("fc", "linear", (8, 16), "linear", prunable=True, permutable=False)
        >>> from_table([fc], {"*": "2:4", "fc": "1:4"}).layers[0].pattern
        Pattern(keep=1, group=4)
    """
    patterns = {key: None if value == "dense" else Pattern(value) for key, value in table.items()}
    for key in patterns:
        if not any(fnmatch.fnmatchcase(layer.name, key) for layer in layers):
            raise ValueError(f"pattern table: {key!r} matches no layer; the first are {_some_names(layers)}")
    for layer in layers:
        if patterns.get(layer.name) is not None and not layer.prunable:
            raise ValueError(f"pattern table: {layer.name!r} has to stay dense: {layer.reason or 'not prunable'}")
    return collect("table", layers, [_look_up(layer, patterns) for layer in layers])


def collect(method: str, layers: Sequence[LayerInfo], budgets: list[LayerBudget]) -> Budget:
    """The record, with the share of all weights that is kept."""
    kept = sum(layer.parameters * entry.density for layer, entry in zip(layers, budgets, strict=True))
    total = sum(layer.parameters for layer in layers)
    return Budget(method, tuple(budgets), kept / total if total else 1.0)


def fit(layer: LayerInfo, pattern: Pattern) -> LayerBudget:
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
    entry = fit(layer, pattern)
    return entry if entry.pattern is None else LayerBudget(layer.name, pattern, pattern.density, f"table: {keys[-1]}")


def _some_names(layers: Sequence[LayerInfo]) -> str:
    return ", ".join(layer.name for layer in layers[:5]) or "none at all"
