from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcore import Pattern
from mpcore.budget import from_table, layer_weights, seb, uniform
from mpcore.records import Budget, LayerInfo


def linear(name: str, rows: int, columns: int, role: str = "linear", **changes: object) -> LayerInfo:
    fields = {"prunable": True, "permutable": False, **changes}
    return LayerInfo(name, "linear", (rows, columns), role, **fields)


def conv(name: str, out: int, channels: int, kernel: int) -> LayerInfo:
    return LayerInfo(name, "conv2d", (out, channels, kernel, kernel), "conv", prunable=True, permutable=False)


def noise(layers: list[LayerInfo], scales: list[float], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v.name: scale * rng.normal(size=v.shape) for v, scale in zip(layers, scales, strict=True)}


# uniform


def test_layers_that_do_not_fit_stay_dense_with_a_reason():
    layers = [
        linear("fits", 4, 8),
        linear("odd", 4, 770),
        linear("head", 10, 8, prunable=False, reason="head"),
        conv("stem", 8, 3, 7),
        conv("body", 8, 16, 3),
    ]
    budget = uniform(layers, "2:4")
    assert [entry.pattern for entry in budget.layers] == [Pattern("2:4"), None, None, None, Pattern("2:4")]
    assert [entry.reason for entry in budget.layers][1:4] == [
        "770 columns is not a multiple of 4",
        "head",
        "3 input channels is not a multiple of 4",
    ]
    total = sum(layer.parameters for layer in layers)
    assert budget.density == pytest.approx(1 - (16 + 8 * 16 * 9 / 2) / total)
    assert Budget.from_json(budget.to_json()) == budget


def test_an_empty_inventory_is_all_dense():
    assert uniform([], "2:4") == Budget("uniform", (), 1.0)
    assert seb([], {}, {}, "2:4") == Budget("seb", (), 1.0)


# table


def test_later_entries_of_a_table_win():
    layers = [linear("blocks.0.fc1", 4, 16), linear("blocks.0.fc2", 4, 16), linear("blocks.1.fc1", 4, 16)]
    budget = from_table(layers, {"*": "2:4", "*.fc1": "1:4", "blocks.1.*": "dense"})
    assert [entry.pattern for entry in budget.layers] == [Pattern("1:4"), Pattern("2:4"), None]
    assert [entry.reason for entry in budget.layers] == ["table: *.fc1", "table: *", "dense in the table (blocks.1.*)"]
    assert budget.density == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)


def test_layers_outside_a_table_stay_dense():
    budget = from_table([linear("a", 4, 16), linear("b", 4, 16)], {"a": "2:4"})
    assert [entry.reason for entry in budget.layers] == ["table: a", "not in the table"]


def test_a_key_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"pattern table: 'blokcs\.\*' matches no layer; the first are a"):
        from_table([linear("a", 4, 16)], {"blokcs.*": "2:4"})
    with pytest.raises(ValueError, match="N:M needs"):
        from_table([linear("a", 4, 16)], {"a": "4:4"})


# SEB


def test_equal_edges_and_scales_give_the_uniform_budget():
    layers = [linear(f"l{i}", 64, 64) for i in range(4)]
    edges = dict.fromkeys((layer.name for layer in layers), 2.0)
    budget = seb(layers, edges, noise(layers, [1.0] * 4), "2:4")
    assert [entry.pattern for entry in budget.layers] == [Pattern("2:4")] * 4


def test_layers_with_a_larger_edge_give_more():
    layers = [linear(f"l{i}", 64, 64) for i in range(3)]
    budget = seb(layers, {"l0": 1.0, "l1": 2.0, "l2": 3.0}, noise(layers, [1.0] * 3), "8:16")
    keeps = [entry.pattern.keep for entry in budget.layers]
    assert keeps[0] > keeps[1] > keeps[2]
    assert sum(keeps) == 24
    assert budget.density == pytest.approx(0.5)


def test_worked_example_of_the_global_threshold():
    """s = 0.5: beta 1.25, s_d 0.7, d = 2/7; z = -1, 1; w = 1 -+ 0.357; each layer holds the magnitudes 1..8."""
    layers = [linear("small", 1, 8), linear("large", 1, 8)]
    weights = {layer.name: np.arange(1.0, 9.0) for layer in layers}
    budget = seb(layers, {"small": 1.0, "large": 2.0}, weights, "4:8")
    # |W| / w: small i / 0.643 = 1.56 i, large i / 1.357 = 0.737 i; the 8 largest are small 3..8 and large 7, 8
    assert [entry.pattern.keep for entry in budget.layers] == [6, 2]
    assert budget.layers[0].reason == "6:8, keeps 0.7500 by SEB, z of sigma_plus -1.00"


def test_a_layer_may_come_out_dense():
    layers = [linear("weak", 8, 8), linear("strong", 8, 8)]
    budget = seb(layers, {"weak": 1.0, "strong": 1.0}, noise(layers, [0.6, 1e3]), "3:4")
    assert [entry.pattern for entry in budget.layers] == [Pattern("2:4"), None]
    assert budget.layers[1].density == 1.0


@pytest.mark.parametrize(
    ("pattern", "role", "expected"),
    [
        ("7:8", "mlp", 1 + 0.5 * (1 - 0.125 / 0.3)),
        ("3:4", "mlp", 1 + 1.0 * (1 - 0.25 / 0.5)),
        ("2:4", "mlp", 1 + 1.25 * (1 - 0.5 / 0.7)),
        ("1:4", "mlp", 1 + 2.0 * (1 - 0.75 / 0.85)),
        ("1:4", "attention", 1 + 1.0 * (1 - 0.75 / 0.85)),
        ("1:4", "conv", 1 + 1.5 * (1 - 0.75 / 0.85)),
        ("1:16", "mlp", 1.0),
    ],
)
def test_the_regime_follows_the_sparsity_and_the_role(pattern, role, expected):
    layers = [linear("low", 4, 16, role), linear("high", 4, 16, role)]
    weights = layer_weights(layers, {"low": 1.0, "high": 3.0}, 1 - Pattern(pattern).density)  # z = -1, 1
    assert weights == pytest.approx({"low": max(0.1, 2 - expected), "high": expected})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.floats(0.1, 10), st.floats(0.05, 20)), min_size=1, max_size=7),
    st.sampled_from(["1:4", "2:4", "3:4", "5:8"]),
    st.integers(0, 1000),
)
def test_the_total_is_within_half_of_the_smallest_layers_step(shape, pattern, seed):
    layers = [linear(f"l{i}", 4 * rows, 16) for i, (rows, _, _) in enumerate(shape)]
    edges = {layer.name: edge for layer, (_, edge, _) in zip(layers, shape, strict=True)}
    weights = noise(layers, [scale for _, _, scale in shape], seed)
    budget = seb(layers, edges, weights, pattern)
    wanted = Pattern(pattern)
    total = sum(layer.parameters for layer in layers)
    smallest = min(layer.parameters for layer in layers) / wanted.group
    kept = sum(layer.parameters * entry.density for layer, entry in zip(layers, budget.layers, strict=True))
    assert abs(kept - wanted.density * total) <= max(smallest / 2, max(v.parameters for v in layers) / wanted.group / 2)
    assert seb(layers, edges, weights, pattern) == budget


def test_layers_that_do_not_fit_are_outside_the_competition():
    layers = [linear("a", 8, 16), linear("odd", 8, 10), linear("head", 8, 16, prunable=False, reason="head")]
    budget = seb(layers, {"a": 1.0}, noise(layers[:1], [1.0]), "2:4")
    assert [entry.pattern for entry in budget.layers] == [Pattern("2:4"), None, None]


def test_missing_or_bad_signals_are_named():
    layers = [linear("a", 4, 8)]
    weights = noise(layers, [1.0])
    with pytest.raises(ValueError, match="sigma_plus: no edge for layer 'a'"):
        seb(layers, {}, weights, "2:4")
    with pytest.raises(ValueError, match="sigma_plus: edge of layer 'a' is nan"):
        seb(layers, {"a": np.nan}, weights, "2:4")
    with pytest.raises(ValueError, match=r"sparsity: 1.5 is not between 0 and 1"):
        layer_weights(layers, {"a": 1.0}, 1.5)
    with pytest.raises(ValueError, match="weights: none for layer 'a'"):
        seb(layers, {"a": 1.0}, {}, "2:4")
    with pytest.raises(ValueError, match=r"weights\['a'\]: 4 entries, the inventory says 32"):
        seb(layers, {"a": 1.0}, {"a": np.ones(4)}, "2:4")
