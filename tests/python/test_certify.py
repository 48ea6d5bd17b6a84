from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpcore import _native, reference
from mpcore.certify import (
    ce_bound,
    certify,
    data_path_budget,
    elastic_net_margin,
    margin_stable,
    wilson,
)
from mpcore.records import Certificate


class Network:
    """W3 relu(W2 relu(W1 x)): behind W2 the logits are Lipschitz in the max norm with constant |W3|_inf, exactly."""

    def __init__(self, rng: np.random.Generator) -> None:
        wide, deep, classes = (int(v) for v in rng.integers([4, 3, 2], [12, 9, 6]))
        self.W1, self.W2, self.W3 = (rng.normal(size=s) for s in ((wide, 5), (deep, wide), (classes, deep)))
        self.x = rng.normal(size=(int(rng.integers(1, 30)), 5))
        self.labels = rng.integers(classes, size=len(self.x))

    @property
    def inputs(self) -> np.ndarray:
        return np.maximum(self.x @ self.W1.T, 0)

    @property
    def lipschitz(self) -> float:
        return float(np.abs(self.W3).sum(axis=1).max())

    def logits(self, W2: np.ndarray) -> np.ndarray:
        return np.maximum(self.inputs @ W2.T, 0) @ self.W3.T

    def cross_entropy(self, W2: np.ndarray) -> float:
        z = self.logits(W2)
        return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), self.labels]).mean())


def removal(network: Network, rng: np.random.Generator) -> np.ndarray:
    """R: the entries of W2 below a random magnitude."""
    return network.W2 * (np.abs(network.W2) < rng.uniform(0.02, 1.0))


# oracle


@given(st.integers(1, 20), st.integers(2, 7), st.integers(0, 10_000))
def test_native_margins_and_changes_equal_their_slow_twins(samples, classes, seed):
    rng = np.random.default_rng(seed)
    dense, pruned = rng.normal(size=(2, samples, classes)).round(1)  # rounding makes ties
    labels = rng.integers(classes, size=samples).astype(np.uintp)
    for found, expected in zip(_native.margins(dense), reference.margins(dense), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(_native.label_margins(dense, labels), reference.label_margins(dense, labels))
    np.testing.assert_array_equal(_native.largest_changes(dense, pruned), reference.largest_changes(dense, pruned))


# theorems: no violation on hundreds of random networks


@pytest.mark.parametrize("seed", range(10))
def test_no_certified_label_changes_and_no_bound_is_broken(seed):
    rng, informative = np.random.default_rng(seed), 0
    for _ in range(30):
        network = Network(rng)
        R = removal(network, rng)
        dense, pruned = network.logits(network.W2), network.logits(network.W2 - R)
        c = certify(dense, pruned, labels=network.labels)
        unchanged = dense.argmax(axis=1) == pruned.argmax(axis=1)
        stable = np.array(c.margin) > 2 * np.array(c.eta)
        assert (unchanged | ~stable).all()
        assert (c.stable, c.unchanged) == (stable.sum(), unchanged.sum())
        assert abs(c.ce_change) <= c.ce_bound * (1 + 1e-12) + 1e-12
        assert c.accuracy_interval[0] <= c.accuracy_pruned <= c.accuracy_interval[1]
        assert c.ce_change == pytest.approx(
            network.cross_entropy(network.W2 - R) - network.cross_entropy(network.W2), abs=1e-12
        )
        informative += c.stable
    assert informative > 0


@pytest.mark.parametrize("seed", range(5))
def test_a_path_of_removals_bounds_the_total_change(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        network = Network(rng)
        current, logits, path = network.W2, [network.logits(network.W2)], {}
        for step in range(4):
            current = current * (rng.random(current.shape) < 0.8)
            logits.append(network.logits(current))
            path[f"layer{step}"] = np.abs(logits[-1] - logits[-2]).max(axis=1)
        c = certify(logits[0], logits[-1], path=path, labels=network.labels)
        assert (np.array(c.eta_path) >= np.array(c.eta)).all()
        assert c.stable_path <= c.stable <= c.unchanged
        assert [layer.name for layer in c.layers] == list(path)
        assert c.layers[2].eta_mean == pytest.approx(path["layer2"].mean())
        assert abs(c.ce_change) <= ce_bound(c.eta_path) * (1 + 1e-12)
        assert Certificate.from_json(c.to_json()) == c


def test_dead_inputs_cost_nothing():
    """The zero-budget case: R reads only inputs that are always zero."""
    rng = np.random.default_rng(0)
    network = Network(rng)
    network.W1[0] = 0
    R = np.zeros_like(network.W2)
    R[:, 0] = network.W2[:, 0]
    c = certify(network.logits(network.W2), network.logits(network.W2 - R))
    assert data_path_budget(R, network.inputs, network.lipschitz) == 0
    assert set(c.eta) == {0.0}
    assert c.stable == c.unchanged == c.samples
    assert elastic_net_margin(R, 0.0, lambda2=1e-6) > 0


# strictness and worked examples


@given(st.integers(-8, 8), st.integers(-8, 8))
def test_a_margin_of_exactly_twice_the_change_certifies_nothing(top, change):
    eta = abs(change) / 4
    dense = np.array([[top + 2 * eta, float(top)]])
    c = certify(dense, dense + np.array([[-eta, eta]]))
    assert (c.margin, c.eta) == ((2 * eta,), (eta,))
    assert c.stable == 0
    assert not margin_stable(2 * eta, eta)


def test_ties_of_the_dense_model_are_unstable():
    c = certify(np.zeros((3, 4)), np.zeros((3, 4)))
    assert (c.stable, c.unchanged, c.eta) == (0, 3, (0.0, 0.0, 0.0))


def test_margins_are_taken_in_double_precision():
    dense = np.array([[16777216.0, 16777216.0 - 1, 0]], np.float32)
    assert certify(dense, dense.astype(np.float64) - 0.25).margin == (1.0,)


def test_numbers_a_reader_can_check():
    dense = np.array([[4.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    pruned = np.array([[3.0, 1.5, 0.0], [0.5, 0.0, 1.0], [0.0, 1.5, 0.0], [3.0, 0.0, 1.0]])
    c = certify(dense, pruned, labels=[0, 0, 0, 0], data_sha256="d", model_sha256="m", seed=7)
    assert c.margin == (3.0, 0.5, 2.0, 3.0)
    assert c.eta == (1.0, 0.5, 0.5, 1.0)
    assert c.eta_path == c.eta
    assert (c.samples, c.stable, c.stable_path, c.unchanged) == (4, 3, 3, 3)
    assert c.ce_bound == 1.5
    assert (c.accuracy_dense, c.accuracy_pruned) == (0.75, 0.5)
    assert c.accuracy_interval == (0.5, 0.75)  # sample 1 may fall, sample 2 is surely wrong
    assert (c.data_sha256, c.model_sha256, c.seed, c.layers) == ("d", "m", 7, ())


@pytest.mark.parametrize("size", [1e17, 1e38, 1e100])
def test_the_largest_logits_give_finite_and_right_numbers(size):
    dense, pruned = np.array([[size, size], [size, -size]]), np.array([[size, size / 2], [size, size]])
    c = certify(dense, pruned, labels=[1, 0])
    assert c.margin == (0.0, 2 * size)
    assert c.eta == (size / 2, 2 * size)
    assert c.ce_bound == 2.5 * size
    # Sample 0 loses size / 2 of its label's lead and had log 2; sample 1 gains log 2.
    assert c.ce_change == pytest.approx(size / 4, rel=1e-12)
    assert (c.accuracy_dense, c.accuracy_pruned, c.accuracy_interval) == (0.5, 0.5, (0.0, 1.0))


def test_what_all_logits_share_does_not_round_the_cross_entropy_away():
    z = np.array([[1e17, 1e17]])
    assert certify(z, np.array([[1e17, 1e17 - 1e6]]), labels=[0]).ce_change == pytest.approx(-math.log(2))


def test_without_labels_the_labelled_fields_are_none():
    c = certify(np.eye(3), np.eye(3))
    assert (c.ce_change, c.accuracy_dense, c.accuracy_pruned, c.accuracy_interval) == (None, None, None, None)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (5, 10), (90, 100), (1, 3), (9999, 10000)])
def test_wilson_intervals_are_those_of_scipy(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_mirrors(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


# rejection


Z = np.array([[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pruned_logits": Z[:1]}, ValueError, r"pruned_logits: shape \(1, 2\) is not that of dense_logits, \(2, 2\)"),
        ({"dense_logits": Z[:, :1], "pruned_logits": Z[:, :1]}, ValueError, "classes: 1 is not at least 2"),
        ({"pruned_logits": Z * np.nan}, ValueError, r"pruned_logits: entry \(0, 0\) is nan"),
        (
            {"dense_logits": Z * 1e308, "labels": [0, 1]},
            ValueError,
            r"dense_logits: entry \(0, 0\) is 1e\+308, wanted at most 1e\+100 in size",
        ),
        ({"pruned_logits": Z * -1e101}, ValueError, r"pruned_logits: entry \(0, 0\) is -1e\+101, wanted at most"),
        ({"path": {"fc": np.full(2, 1e308)}}, ValueError, r"path\['fc'\]: entry \(0,\) is 1e\+308, wanted at most"),
        ({"dense_logits": Z.astype(int)}, TypeError, "dense_logits: dtype int64"),
        ({"labels": [0.0, 1.0]}, TypeError, "labels: dtype float64 is not an integer type"),
        ({"labels": [0]}, ValueError, r"labels: shape \(1,\) is not \(2,\), one label per sample"),
        ({"labels": [0, 2]}, ValueError, r"labels: entry 1 is 2, wanted 0\.\.1"),
        ({"labels": [-1, 0]}, ValueError, r"labels: entry 0 is -1, wanted 0\.\.1"),
        ({"path": [1]}, TypeError, "path: a list, wanted a mapping of layers to changes of the logits"),
        ({"path": {"fc": np.ones(3)}}, ValueError, r"path\['fc'\]: wanted 2 changes >= 0"),
        ({"path": {"fc": -np.ones(2)}}, ValueError, r"path\['fc'\]: wanted 2 changes >= 0"),
        ({"pruned_logits": Z + 1, "path": {"fc": np.array([1.0, 0.5])}}, ValueError, "sample 1 add up to 0.5"),
    ],
)
def test_unfit_arguments_are_named(arguments, error, message):
    given_arguments = {"dense_logits": Z, "pruned_logits": Z, **arguments}
    with pytest.raises(error, match=message):
        certify(given_arguments.pop("dense_logits"), given_arguments.pop("pruned_logits"), **given_arguments)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0), (1.5, 2)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)
