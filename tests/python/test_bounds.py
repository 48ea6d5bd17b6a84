"""The theorems of docs/method.md, "Certificates", on thousands of random networks and on noise: no violation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcore.certify import (
    accuracy_interval,
    ce_bound,
    data_path_budget,
    elastic_net_margin,
    frobenius_margin,
    gaussian_effect,
    margin_stable,
    mp_edge_effect,
    multi_layer_margin,
    propagated_effect,
    prune_restore,
    recover_support,
    relu_tail_lipschitz,
    relu_tail_spread,
    restoration_gain,
    row_norm_effect,
    smallest_lambda2,
    stationarity_excess,
    sub_gaussian_effect,
    support_threshold,
)

SHAPES = 20
SLACK = 1e-9


@dataclass
class Networks:
    """Many networks W3 relu(W2 relu(W v)) of one shape at once; W is the layer that is pruned, v its inputs."""

    W: np.ndarray  # (networks, rows, columns)
    W2: np.ndarray
    W3: np.ndarray
    v: np.ndarray  # (networks, samples, columns), >= 0 and partly dead
    labels: np.ndarray  # (networks, samples)

    def logits(self, W: np.ndarray) -> np.ndarray:
        hidden = np.maximum(self.v @ W.transpose(0, 2, 1), 0)
        return np.maximum(hidden @ self.W2.transpose(0, 2, 1), 0) @ self.W3.transpose(0, 2, 1)

    def cross_entropy(self, z: np.ndarray) -> np.ndarray:
        return (np.log(np.exp(z).sum(axis=2)) - np.take_along_axis(z, self.labels[..., None], 2)[..., 0]).mean(axis=1)


def networks(rng: np.random.Generator, count: int) -> Networks:
    columns, rows, deep, classes, samples = (int(v) for v in rng.integers([3, 2, 2, 2, 1], [10, 8, 7, 6, 12]))
    shapes = ((rows, columns), (deep, rows), (classes, deep), (samples, columns))
    W, W2, W3, v = (rng.normal(size=(count, *s)) for s in shapes)
    return Networks(W, W2, W3, np.maximum(v, 0), rng.integers(classes, size=(count, samples)))


def top_two(z: np.ndarray) -> np.ndarray:
    ordered = np.sort(z, axis=-1)
    return ordered[..., -1] - ordered[..., -2]


def lead(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = np.take_along_axis(z, labels[..., None], -1)[..., 0]
    others = z.copy()
    np.put_along_axis(others, labels[..., None], -np.inf, -1)
    return own - others.max(axis=-1)


def cases(total: int) -> Iterator[tuple[np.random.Generator, Networks, np.ndarray]]:
    """Networks of twenty shapes, and the part R that a random threshold on the magnitudes removes from each."""
    for seed in range(SHAPES):
        rng = np.random.default_rng(seed)
        many = networks(rng, total // SHAPES)
        threshold = rng.uniform(0.001, 1.0, size=(total // SHAPES, 1, 1)) ** 2
        yield rng, many, many.W * (np.abs(many.W) < threshold)


def test_no_logit_label_or_loss_leaves_its_bound_in_10_000_networks():
    certified = 0
    for rng, many, removed in cases(10_000):
        theta = float(rng.choice([0.0, 0.3, 0.8]))
        dense, moved = many.logits(many.W), many.logits(many.W - (1 - theta) * removed)
        change, margins, leads = np.abs(moved - dense).max(axis=2), top_two(dense), lead(dense, many.labels)
        same = dense.argmax(axis=2) == moved.argmax(axis=2)
        loss = np.abs(many.cross_entropy(moved) - many.cross_entropy(dense))
        right = (moved.argmax(axis=2) == many.labels).mean(axis=1)
        for i, R in enumerate(removed):
            tail = [many.W2[i], many.W3[i]]
            eta = propagated_effect(R, many.v[i], relu_tail_lipschitz(tail), theta=theta)
            assert (change[i] <= eta + SLACK).all()
            spread = relu_tail_spread(tail)
            tight = propagated_effect(R, many.v[i], spread, theta=theta)
            assert (tight <= eta + SLACK).all()
            for bound in (eta, tight):
                stable = margin_stable(margins[i], bound)
                assert (same[i] | ~stable).all()
                certified += int(stable.sum())
                low, high = accuracy_interval(leads[i], bound)
                assert low <= right[i] <= high
            assert loss[i] <= data_path_budget(R, many.v[i], spread, theta=theta) + SLACK
    assert certified > 10_000


def test_every_certified_decrease_happens_in_10_000_networks():
    decreases = 0
    for rng, many, removed in cases(10_000):
        lambda2, lambda1, theta = float(rng.choice([0.3, 3.0, 50.0])), float(rng.choice([0.0, 0.5])), 0.25
        before = many.cross_entropy(many.logits(many.W))
        after = many.cross_entropy(many.logits(many.W - removed))
        part = many.cross_entropy(many.logits(many.W - (1 - theta) * removed))
        square, absolute = ((f(many.W) - f(many.W - removed)).sum(axis=(1, 2)) for f in (np.square, np.abs))
        partly = (np.square(many.W) - np.square(many.W - (1 - theta) * removed)).sum(axis=(1, 2))
        for i, R in enumerate(removed):
            budget = data_path_budget(R, many.v[i], relu_tail_spread([many.W2[i], many.W3[i]]))
            margin = elastic_net_margin(R, budget, lambda2=lambda2, lambda1=lambda1)
            assert after[i] - before[i] - lambda2 * square[i] - lambda1 * absolute[i] <= -margin + SLACK
            decreases += margin > 0
            margin = elastic_net_margin(R, budget, lambda2=lambda2, theta=theta)
            assert part[i] - before[i] - lambda2 * partly[i] <= -margin + SLACK
            smallest = smallest_lambda2(R, budget, lambda1=lambda1)
            if 0 < smallest < math.inf:
                assert elastic_net_margin(R, budget, lambda2=smallest * 1.001, lambda1=lambda1) > 0
                assert elastic_net_margin(R, budget, lambda2=smallest * 0.999, lambda1=lambda1) < 0
    assert decreases > 1000


def test_any_split_obeys_the_frobenius_certificate():
    decreases = 0
    for rng, many, _ in cases(2_000):
        u, s, v = np.linalg.svd(many.W, full_matrices=False)
        kept = s > rng.uniform(0, 1, size=(len(s), 1)) * s[:, :1]
        split = (u * (s * kept)[:, None]) @ v + rng.choice([0.0, 0.1]) * rng.normal(size=many.W.shape)
        theta, lambda2 = float(rng.choice([0.0, 0.5])), float(rng.choice([1.0, 50.0]))
        moved = split + theta * (many.W - split)
        change = many.cross_entropy(many.logits(moved)) - many.cross_entropy(many.logits(many.W))
        change += lambda2 * (np.square(moved) - np.square(many.W)).sum(axis=(1, 2))
        for i, S in enumerate(split):
            R = many.W[i] - S
            budget = data_path_budget(R, many.v[i], relu_tail_lipschitz([many.W2[i], many.W3[i]]))
            margin = frobenius_margin(S, R, budget, lambda2=lambda2, theta=theta)
            assert change[i] <= -margin + SLACK * lambda2
            decreases += margin > 0
    assert decreases > 200


def test_restoring_and_removals_from_several_layers_keep_their_word():
    """Q + P is pruned and Q restored in W, then half of W2 goes in the network that is left."""
    decreases = 0
    for rng, many, removed in cases(2_000):
        back = rng.random(removed.shape) < 0.3
        Q, P = removed * back, removed * ~back
        second = many.W2 * (np.abs(many.W2) < 0.3)
        then = Networks(many.W - P, many.W2 - second, many.W3, many.v, many.labels)
        z = [many.logits(many.W), many.logits(many.W - P), then.logits(then.W)]
        loss = [many.cross_entropy(v) for v in z]
        steps = [2 * np.abs(b - a).max(axis=2).mean(axis=1) for a, b in itertools.pairwise(z)]
        squares = [np.square(part).sum(axis=(1, 2)) for part in (P, second)]
        lambda2 = float(rng.choice([1.0, 20.0]))
        for i in range(len(P)):
            L = relu_tail_lipschitz([many.W2[i], many.W3[i]])
            found = prune_restore(Q[i], P[i], many.v[i], L, lambda2=lambda2)
            assert loss[1][i] - loss[0][i] - lambda2 * squares[0][i] <= -found.margin + SLACK
            without = elastic_net_margin(
                removed[i], data_path_budget(removed[i], many.v[i], L), lambda2=lambda2
            )  # gain is what the bound wins by giving Q back
            assert found.margin - without == pytest.approx(found.gain, abs=1e-6)
            budgets = [float(step[i]) for step in steps]
            margin = multi_layer_margin([P[i], second[i]], budgets, lambda2=[lambda2] * 2)
            objective = loss[2][i] - loss[0][i] - lambda2 * (squares[0][i] + squares[1][i])
            assert objective <= -margin + SLACK
            decreases += margin > 0
    assert decreases > 200


def test_a_regularised_minimum_has_no_stationarity_excess():
    """One weight w, logits (w, 0), label 0: the budget of w outweighs 2 lambda2 w^2 at the minimum."""
    for lambda2 in (0.01, 0.1, 1.0):
        grid = np.linspace(0, 10, 200_001)
        w = float(grid[(np.log1p(np.exp(-grid)) + lambda2 * grid**2).argmin()])
        budget = data_path_budget(np.array([[w]]), np.ones((1, 1)), relu_tail_spread([np.array([[1.0], [0.0]])]))
        assert stationarity_excess(np.array([[w]]), budget, lambda2=lambda2, epsilon=1e-6) <= 0
        assert stationarity_excess(np.array([[10.0]]), 10.0, lambda2=lambda2) == pytest.approx(200 * lambda2 - 10)


def test_restoring_can_tighten_or_loosen_the_bound():
    """P = (0, 1) and Q = (1, 0): inputs (1, 1) add up, inputs (1, -1) cancel."""
    Q, P = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    for inputs, gain in (([[2.0, 1.0]], 4.0), ([[1.0, -1.0]], -2.0)):
        assert prune_restore(Q, P, np.array(inputs), 1.0, lambda2=0.0).gain == pytest.approx(gain)


def test_tokens_count_by_their_largest_effect():
    tokens = np.array([[[1.0], [-3.0]], [[2.0], [0.0]]])
    assert data_path_budget(np.array([[1.0]]), tokens, [1.0, 2.0]) == pytest.approx(7.0, rel=1e-15)


def test_the_smallest_lambda2_by_hand():
    assert smallest_lambda2(np.array([[1.0, -2.0]]), 3.0, lambda1=0.5) == pytest.approx(0.3)
    assert smallest_lambda2(np.array([[1.0, -2.0]]), 1.0, lambda1=0.5) == 0.0
    assert smallest_lambda2(np.zeros((1, 2)), 1.0) == math.inf
    assert smallest_lambda2(np.zeros((1, 2)), 0.0) == math.inf, "the margin is 0 for every lambda2"
    assert smallest_lambda2(np.ones((1, 2)), 0.0) == 0.0
    assert smallest_lambda2(np.ones((1, 2)), math.inf) == math.inf


# constants


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 6))
def test_the_constants_of_one_layer_are_attained(seed, width, classes):
    W = np.random.default_rng(seed).normal(size=(classes, width))
    row = int(np.abs(W).sum(axis=1).argmax())
    assert np.abs(W @ np.sign(W[row])).max() == pytest.approx(relu_tail_lipschitz([W]))
    pairs = [(a, b) for a in range(classes) for b in range(classes)]
    largest = max(abs((W[a] - W[b]) @ np.sign(W[a] - W[b])) for a, b in pairs)
    assert largest / 2 == pytest.approx(relu_tail_spread([W]))
    assert relu_tail_spread([W]) <= relu_tail_lipschitz([W]) * (1 + 1e-12)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_row_norms_never_promise_less_than_the_inputs_themselves(seed, rows, columns, samples):
    rng = np.random.default_rng(seed)
    R, v = rng.normal(size=(rows, columns)), rng.normal(size=(samples, columns))
    norms = np.linalg.norm(v, axis=1)
    assert (propagated_effect(R, v, 1.5) <= row_norm_effect(R, norms, 1.5) * (1 + 1e-12)).all()


def test_weighted_norms_are_weighted_entry_by_entry():
    R, weights = np.array([[1.0, 2.0]]), np.array([[3.0, 0.5]])
    assert elastic_net_margin(R, 1.0, lambda2=weights, lambda1=weights) == 3 * 1 + 0.5 * 4 + 3 * 1 + 0.5 * 2 - 1


def test_numbers_of_any_library_and_sequences_are_taken():
    torch = pytest.importorskip("torch")
    R, v = np.ones((1, 2)), np.ones((2, 2))
    for lipschitz in (2, 2.0, np.int64(2), np.float32(2), [2, 2], (2.0, 2.0), torch.full((2,), 2.0), np.array([2, 2])):
        assert propagated_effect(R, v, lipschitz) == pytest.approx([4.0, 4.0], rel=1e-15)
    with pytest.raises(TypeError, match="lipschitz: dtype bool is not float16"):
        propagated_effect(R, v, True)


# noise


@pytest.mark.parametrize("noise", ["normal", "signs"])
def test_the_random_budgets_fail_at_most_as_often_as_stated(noise):
    rng, n, m, samples, draws, delta, g = np.random.default_rng(0), 16, 12, 8, 10_000, 0.2, 0.7
    v, lipschitz = rng.normal(size=(samples, m)), rng.uniform(0.5, 2.0, size=samples)
    R = rng.normal(size=(draws, n, m)) if noise == "normal" else rng.choice([-1.0, 1.0], size=(draws, n, m))
    reach = lipschitz * np.abs(v @ (R * math.sqrt(g / n)).transpose(0, 2, 1)).max(axis=2)
    norms = np.linalg.norm(v, axis=1)
    eta = gaussian_effect(g, n, norms, lipschitz, delta=delta)
    sigma_plus = math.sqrt(g) * (1 + math.sqrt(m / n))
    np.testing.assert_allclose(mp_edge_effect(sigma_plus, (n, m), norms, lipschitz, delta=delta), eta)
    np.testing.assert_allclose(sub_gaussian_effect(g, n, norms, lipschitz, constant=0.5, delta=delta), eta)
    failures = float((reach > eta).any(axis=1).mean())
    assert (0 if noise == "signs" else 1e-4) <= failures <= delta
    assert float((2 * reach.mean(axis=1) > ce_bound(eta)).mean()) <= failures


def test_entries_above_twice_the_threshold_are_recovered_and_no_others():
    rng, shape, g, delta, draws, failed = np.random.default_rng(1), (40, 30), 0.5, 0.3, 2000, 0
    t = support_threshold(g, shape, delta=delta)
    S = np.where(rng.random(shape) < 0.1, rng.choice([-1, 1], shape) * 2.001 * t, 0.0)
    for _ in range(draws):
        W = S + rng.normal(size=shape) * math.sqrt(g / shape[0])
        failed += not (recover_support(W, g, delta=delta) == (S != 0)).all()
    assert 0 < failed / draws <= delta


# rejection


R, V = np.ones((2, 3)), np.ones((4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: propagated_effect(R, np.ones((4, 2)), 1.0), r"inputs: shape \(4, 2\) does not end in the 3 columns"),
        (lambda: propagated_effect(R, V, -1.0), "lipschitz: -1.0 is not a number >= 0"),
        (lambda: propagated_effect(R, V, np.ones(3)), r"lipschitz: shape \(3,\), wanted a number or shape \(4,\)"),
        (lambda: data_path_budget(R, V, 1.0, theta=1.5), "theta: 1.5 is not between 0 and 1"),
        (
            lambda: frobenius_margin(R[:1], R, 1.0, lambda2=1.0),
            r"kept: shape \(1, 3\) is not that of removed, \(2, 3\)",
        ),
        (lambda: prune_restore(R, R, V, 1.0, lambda2=1.0), "restored: shares an entry with removed"),
        (lambda: relu_tail_lipschitz([]), "weights: wanted at least one layer"),
        (lambda: relu_tail_spread([R[:1]]), "weights: the last has 1 rows, wanted at least 2 classes"),
        (lambda: gaussian_effect(-1.0, 2, np.ones(2), 1.0), "g: -1.0 is not a finite number >= 0"),
        (lambda: gaussian_effect(1.0, 0, np.ones(2), 1.0), "rows: 0 is not an integer >= 1"),
        (lambda: gaussian_effect(1.0, 2, np.ones(2), 1.0, delta=0.0), "delta: 0.0 is not between 0 and 1"),
        (lambda: sub_gaussian_effect(1.0, 2, np.ones(2), 1.0, constant=0.0), "constant: 0.0 is not positive"),
        (lambda: mp_edge_effect(1.0, (2, 0), np.ones(2), 1.0), r"shape: \(2, 0\), wanted two numbers >= 1"),
        (lambda: multi_layer_margin([R], [1.0, 2.0], lambda2=[1.0]), "budgets: 2 entries, wanted 1"),
        (lambda: multi_layer_margin([R], [1.0], lambda2=[1.0] * 2), "lambda2: 2 entries, wanted 1, one per matrix"),
        # what would be broadcast, and what is not a number in range
        (lambda: margin_stable(V[:, 0], V[:, :1]), r"eta: shape \(4, 1\), wanted a number or shape \(4,\)"),
        (lambda: margin_stable(V, 1.0), r"margin: shape \(4, 3\), wanted a number or shape \(samples,\)"),
        (lambda: margin_stable(math.nan, 1.0), "margin: nan is not a finite number"),
        (lambda: accuracy_interval(V[:, 0], V[:, :1]), r"eta: shape \(4, 1\), wanted a number or shape \(4,\)"),
        (lambda: accuracy_interval(V[:, 0], math.nan), "eta: nan is not a number >= 0"),
        (lambda: accuracy_interval(V[:, 0], -1.0), "eta: -1.0 is not a number >= 0"),
        (lambda: ce_bound([1.0, -2.0]), "eta: -2.0 is not a number >= 0"),
        (lambda: propagated_effect(R, V, V[:, :1]), r"lipschitz: shape \(4, 1\), wanted a number or shape \(4,\)"),
        (lambda: propagated_effect(R, V, math.nan), "lipschitz: nan is not a number >= 0"),
        (lambda: row_norm_effect(R, [1.0, -1.0], 1.0), "input_norms: -1.0 is not a finite number >= 0"),
        (lambda: gaussian_effect(1.0, 2, V[:, 0], V[:, :1]), r"lipschitz: shape \(4, 1\), wanted a number or shape"),
        (lambda: gaussian_effect(1.0, 2, V[:, 0], -1.0), "lipschitz: -1.0 is not a number >= 0"),
        (lambda: mp_edge_effect(-1.0, (2, 3), V[:, 0], 1.0), "sigma_plus: -1.0 is not a finite number >= 0"),
        (lambda: support_threshold(-1.0, (2, 3)), "g: -1.0 is not a finite number >= 0"),
        (lambda: elastic_net_margin(R, -1.0, lambda2=1.0), "budget: -1.0 is not a number >= 0"),
        (lambda: elastic_net_margin(R, 1.0, lambda2=-1.0), "lambda2: -1.0 is not a finite number >= 0"),
        (lambda: elastic_net_margin(R, 1.0, lambda2=1.0, lambda1=-R), "lambda1: -1.0 is not a finite number >= 0"),
        (
            lambda: elastic_net_margin(R, 1.0, lambda2=np.ones((5, 2, 3))),
            r"lambda2: shape \(5, 2, 3\), wanted a number or shape \(2, 3\)",
        ),
        (lambda: elastic_net_margin(R * 1e200, 1.0, lambda2=1.0), r"removed: lambda2 \|R\|\^2 is outside float64"),
        (lambda: frobenius_margin(R, R, 1.0, lambda2=-1.0), "lambda2: -1.0 is not a finite number >= 0"),
        (lambda: frobenius_margin(R * 1e200, R * -1e200, 1.0, lambda2=1.0), "is outside float64"),
        (lambda: smallest_lambda2(R, -1.0), "budget: -1.0 is not a number >= 0"),
        (lambda: restoration_gain(R, 1.0, -1.0, lambda2=1.0), "budget_after: -1.0 is not a number >= 0"),
        (lambda: stationarity_excess(R, 1.0, lambda2=1.0, epsilon=-1.0), "epsilon: -1.0 is not a finite number >= 0"),
        (
            lambda: relu_tail_lipschitz([R, V]),
            r"weights\[1\]: shape \(4, 3\) takes 3 inputs, weights\[0\] has 2 outputs",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
