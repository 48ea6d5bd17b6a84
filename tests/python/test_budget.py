from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcore import Pattern
from mpcore.budget import (
    corrected_signal,
    from_table,
    hill_exponent,
    knapsack,
    layer_weights,
    reference_pattern,
    rmt2025,
    rmt2025_shares,
    seb,
    solve_choices,
    uniform,
)
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


def test_a_full_name_of_a_layer_that_stays_dense_is_refused_and_a_glob_is_not():
    layers = [linear("a", 4, 16), linear("fc", 4, 16, prunable=False, reason="classifier head")]
    with pytest.raises(ValueError, match="pattern table: 'fc' has to stay dense: classifier head"):
        from_table(layers, {"*": "2:4", "fc": "1:4"})
    for table in ({"*": "2:4"}, {"*": "2:4", "fc": "dense"}):
        assert from_table(layers, table).layers[1].pattern is None


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
    assert budget.layers[0].reason == "6:8, keeps 0.7500 by SEB, z -1.00"


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


def test_up_to_a_fifth_the_tail_exponent_is_the_signal():
    layers = [linear("a", 4, 16), linear("b", 4, 16)]
    edges, hill = {"a": 1.0, "b": 3.0}, {"a": 5.0, "b": 2.0}
    small, large = (layer_weights(layers, edges, s, hill=hill) for s in (0.125, 0.5))
    assert small["a"] > 1 > small["b"]
    assert large == layer_weights(layers, edges, 0.5)
    with pytest.raises(ValueError, match="hill: None for layer 'b'"):
        layer_weights(layers, edges, 0.1, hill={"a": 1.0})


def test_a_pareto_spectrum_has_its_tail_exponent():
    """Eigenvalues with P(l > x) = x^-a have a density with exponent 1 + a."""
    eigenvalues = (np.arange(1, 100_001) / 100_000) ** (-1 / 2.5)
    assert hill_exponent(np.sqrt(eigenvalues)) == pytest.approx(3.5, rel=0.1)
    assert hill_exponent(np.ones(5)) == np.inf
    with pytest.raises(ValueError, match="values: 1 are positive, wanted at least 2"):
        hill_exponent(np.array([1.0, 0.0]))


def test_the_corrected_signal_protects_layers_with_a_larger_effect_and_knows_no_shape():
    layers = [linear("loud", 64, 64), linear("quiet", 64, 64)]
    signal = corrected_signal(dict.fromkeys("ab", 1.0), {"a": 2.0, "b": 8.0}, {"a": 4.0, "b": 1.0})
    assert signal["a"] == signal["b"] == pytest.approx(-np.log(8))
    signal = corrected_signal({"loud": 1.0, "quiet": 1.0}, {"loud": 9.0, "quiet": 1.0}, {"loud": 1.0, "quiet": 1.0})
    budget = seb(layers, {}, noise(layers, [1.0, 1.0]), "8:16", signal=signal)
    assert budget.layers[0].density > budget.layers[1].density
    dead = corrected_signal({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    assert dead["a"] == dead["b"]
    with pytest.raises(ValueError, match=r"signal: sigma [|]v[|] L of layer 'a' is nan"):
        corrected_signal({"a": 1.0}, {"a": 1.0}, {})


# the rule of 2025


def test_the_more_a_layer_looks_like_noise_the_more_it_gives():
    layers = [linear("noise", 64, 64), linear("middle", 64, 64), linear("signal", 64, 64)]
    errors, bulk = {"noise": 0.01, "middle": 0.3, "signal": 0.9}, {"noise": 1.0, "middle": 0.8, "signal": 0.4}
    budget = rmt2025(layers, errors, bulk, "8:16")
    densities = [entry.density for entry in budget.layers]
    assert densities[0] < densities[1] < densities[2]
    assert budget.density == pytest.approx(0.5)
    assert budget.method == "rmt-2025"


def test_its_cycles_by_hand():
    """Two cycles for a layer with (1 - E) b = 0.25: 0.0612 * 0.125, then 0.062424 * 0.25^0.75 of the rest."""
    share = rmt2025_shares({"a": 0.5}, {"a": 0.5}, cycles=2)["a"]
    assert share == pytest.approx((1 - 0.0612 * 0.125) * (1 - 0.062424 * 0.25**0.75))
    assert rmt2025_shares({"a": 1.0}, {"a": 0.5}) == {"a": 1.0}
    with pytest.raises(ValueError, match=r"layer 'a': fit error 1\.5 and bulk 0\.5"):
        rmt2025_shares({"a": 1.5}, {"a": 0.5})
    with pytest.raises(ValueError, match="layer 'a': fit error -1"):
        rmt2025([linear("a", 4, 16)], {}, {}, "2:4")


# knapsack


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]], int]:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    cost = [[draw(st.sampled_from([0.0, 0.5, 1.0, 1.25, 3.0, 1e-9, 1e9])) for _ in range(n)] for n in shape]
    weight = [[draw(st.integers(0, 12)) for _ in range(n)] for n in shape]
    return cost, weight, sum(map(min, weight)) + draw(st.integers(0, 20))


@settings(max_examples=300)
@given(choices())
def test_choices_cost_as_little_as_brute_force(problem):
    cost, weight, limit = problem
    picks = solve_choices(cost, weight, limit)
    assert sum(w[i] for w, i in zip(weight, picks, strict=True)) <= limit
    feasible = (
        sum(c[i] for c, i in zip(cost, every, strict=True))
        for every in itertools.product(*(range(len(c)) for c in cost))
        if sum(w[i] for w, i in zip(weight, every, strict=True)) <= limit
    )
    assert sum(c[i] for c, i in zip(cost, picks, strict=True)) == pytest.approx(min(feasible), abs=1e-8)


def test_a_cost_far_above_the_others_hides_no_difference_of_theirs():
    cost = [[0.5, 0.0], [0.06, 0.0], [1e300, 0.0, 0.45], [0.88]]
    assert solve_choices(cost, [[2, 4], [6, 18], [4, 13, 17], [0]], 23) == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="costs: their sum is outside float64"):
        solve_choices([[1.5e308, 0.0], [1.5e308, 0.0]], [[1, 2], [1, 2]], 3)


def test_a_hundred_layers_of_many_sizes_are_solved():
    rng = np.random.default_rng(0)
    size = rng.integers(10**6, 10**9, 100)
    weight = [[int(4 * s), int(3 * s), int(2 * s), int(s)] for s in size]
    cost = [[0.0, *np.cumsum(rng.exponential(size=3) ** 3)] for _ in size]
    limit = int(2 * size.sum())
    picks = solve_choices(cost, weight, limit)
    assert sum(w[i] for w, i in zip(weight, picks, strict=True)) <= limit
    slope = min(
        max(_dual(cost, weight, limit, slope) for slope in slopes) for slopes in [np.geomspace(1e-12, 1e-6, 4000)]
    )
    assert slope <= sum(c[i] for c, i in zip(cost, picks, strict=True)) <= slope * 1.02


def _dual(cost: list[list[float]], weight: list[list[int]], limit: int, slope: float) -> float:
    """A Lagrangian lower bound of every solution."""
    best = (min(c + slope * w for c, w in zip(cs, ws, strict=True)) for cs, ws in zip(cost, weight, strict=True))
    return sum(best) - slope * limit


def test_the_knapsack_takes_no_more_than_the_uniform_pattern_and_leaves_misfits_dense():
    layers = [linear("a", 8, 16), linear("b", 8, 24), linear("odd", 8, 10), linear("head", 9, 16, prunable=False)]
    menu = [Pattern(text) for text in ("1:4", "2:4", "8:16", "12:16")]
    costs = {
        "a": {Pattern("1:4"): 1.0, Pattern("8:16"): 0.2, Pattern("12:16"): 0.1},
        "b": {Pattern("1:4"): 9.0, Pattern("2:4"): 5.0},
    }
    budget = knapsack(layers, costs, "2:4")
    assert [entry.pattern for entry in budget.layers] == [Pattern("8:16"), Pattern("2:4"), None, None]
    loose = knapsack(layers, costs, "2:4", sizes={"a": 300, "b": 100})
    assert [entry.pattern for entry in loose.layers] == [Pattern("1:4"), None, None, None]
    assert reference_pattern(layers[1], Pattern("8:16"), menu) == Pattern("2:4")
    assert reference_pattern(layers[2], Pattern("8:16"), menu) is None
    assert Budget.from_json(budget.to_json()) == budget


def test_unfit_costs_sizes_and_limits_are_named():
    layers, half = [linear("a", 8, 16)], Pattern("2:4")
    with pytest.raises(ValueError, match=r"costs: -1\.0 for layer 'a' at 2:4"):
        knapsack(layers, {"a": {half: -1.0}}, "2:4")
    with pytest.raises(ValueError, match="sizes: None for layer 'a'"):
        knapsack(layers, {"a": {half: 1.0}}, "2:4", sizes={})
    with pytest.raises(ValueError, match="limit: 1 is below 2, the lightest choice"):
        solve_choices([[0.0]], [[2]], 1)


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
