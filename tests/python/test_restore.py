from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcore.models.restore import reallocate


def layers(seed: int, sizes: list[int]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    rng = np.random.default_rng(seed)
    weights = {f"l{i}": rng.normal(size=(size, 3)).round(1) for i, size in enumerate(sizes)}  # rounding makes ties
    return weights, {name: float(rng.uniform(0.1, 2)) for name in weights}


def slowly(weights, factors, kept_first, kept_in_the_end, importance, sign):
    """Every entry as a tuple, sorted twice."""
    entries = [(name, i) for name, array in weights.items() for i in range(array.size)]
    magnitude = {e: abs(weights[e[0]].ravel()[e[1]]) / factors[e[0]] for e in entries}
    score = {e: importance[e[0]].ravel()[e[1]] * factors[e[0]] ** sign for e in entries}
    kept = sorted(entries, key=lambda e: -magnitude[e])[:kept_first]
    removed = [e for e in entries if e not in kept]
    restored = sorted(removed, key=lambda e: -score[e])[: kept_in_the_end - kept_first]
    return set(kept) | set(restored), set(restored)


def entries_of(masks: dict[str, np.ndarray]) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, mask in masks.items() for i in np.flatnonzero(mask.ravel())}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.floats(0, 0.9),
    st.floats(0, 0.1),
    st.sampled_from(["protected", "pruned"]),
)
def test_a_step_equals_its_slow_twin(seed, sizes, sparsity, overshoot, priority):
    weights, factors = layers(seed, sizes)
    importance = {n: np.abs(np.random.default_rng(seed + 1).normal(size=w.shape)).round(1) for n, w in weights.items()}
    step = reallocate(weights, factors, sparsity, overshoot=overshoot, importance=importance, priority=priority)
    size = sum(w.size for w in weights.values())
    final, first = round((1 - sparsity) * size), round((1 - sparsity - overshoot) * size)
    kept, restored = slowly(weights, factors, first, final, importance, -1 if priority == "protected" else 1)
    assert entries_of(step.kept) == kept
    assert entries_of(step.restored) == restored
    assert step.sparsity == pytest.approx(1 - final / size)


@given(st.integers(0, 10_000), st.floats(0, 0.9))
def test_protected_magnitudes_are_plain_pruning(seed, sparsity):
    weights, factors = layers(seed, [5, 9])
    step = reallocate(weights, factors, sparsity, overshoot=0.1)
    plain = reallocate(weights, factors, sparsity, overshoot=0.0)
    assert entries_of(step.kept) == entries_of(plain.kept)
    assert not entries_of(plain.restored)


def test_the_two_priorities_restore_to_opposite_layers():
    """Half of each layer goes: |W| / w is 1..10 in both; among the removed, 'a' is protected (small w)."""
    values = np.arange(1.0, 11.0)
    weights, factors = {"a": 0.5 * values, "b": 2.0 * values}, {"a": 0.5, "b": 2.0}
    moved = {"a": np.ones(10), "b": np.ones(10)}
    where = {}
    for priority in ("protected", "pruned"):
        step = reallocate(weights, factors, 0.5, overshoot=0.1, importance=moved, priority=priority)
        where[priority] = {name for name, _ in entries_of(step.restored)}
        assert step.sparsity == 0.5
    assert where == {"protected": {"a"}, "pruned": {"b"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 0.99}, "sparsity: 0.99 [+] overshoot 0.03, wanted shares"),
        ({"sparsity": -0.1}, "wanted shares within 0..1"),
        ({"layer_weights": {"a": 0.0}}, "layer_weights: 0.0 for layer 'a', wanted a number > 0"),
        ({"layer_weights": {}}, "layer_weights: None for layer 'a'"),
        ({"weights": {}}, "weights: no layer at all"),
        ({"importance": {}}, "importance: none for layer 'a'"),
        ({"importance": {"a": np.ones(3)}}, r"importance\['a'\]: wanted scores >= 0 of shape \(4,\)"),
        ({"importance": {"a": -np.ones(4)}}, r"importance\['a'\]: wanted scores >= 0"),
        ({"priority": "both"}, "priority: 'both', wanted 'protected' or 'pruned'"),
        ({"weights": {"a": np.array([1.0, np.nan])}}, r"weights\['a'\]: entry \(1,\) is nan"),
    ],
)
def test_mistakes_are_named(arguments, message):
    fields = {"weights": {"a": np.ones(4)}, "layer_weights": {"a": 1.0}, "sparsity": 0.5, **arguments}
    with pytest.raises(ValueError, match=message):
        reallocate(fields.pop("weights"), fields.pop("layer_weights"), fields.pop("sparsity"), **fields)
