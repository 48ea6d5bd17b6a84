from __future__ import annotations

import numpy as np
import pytest
from fakes import ctrl_c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpcore import PermutationResult, optimize_permutation, reference

LONG = 600.0
"""Seconds that no search here takes: ``max_rounds`` decides, and no result depends on the clock."""

shapes = st.tuples(
    st.integers(1, 40), st.integers(1, 9), st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (5, 7), (12, 16)])
)
seeds = st.integers(0, 2**32 - 1)


def uniform(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, columns))


def search(score: np.ndarray, pattern: object = "2:4", **changes: object) -> PermutationResult:
    settings = {"max_rounds": 30, "time_limit": LONG, **changes}
    return optimize_permutation(score, pattern, **settings)


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([np.float32, np.float64]), seeds)
def test_the_account_of_a_search_is_that_of_a_recount(shape, precision, seed):
    rows, groups, (keep, group) = shape
    score = (uniform(rows, groups * group, seed) ** 3).astype(precision)
    found = search(score, (keep, group), seed=seed)
    columns = np.arange(score.shape[1])
    np.testing.assert_array_equal(np.sort(found.order), columns)
    assert found.order.dtype == np.int64
    assert found.kept == pytest.approx(reference.kept_score(score, found.order, keep, group), rel=1e-12)
    assert found.kept_identity == pytest.approx(reference.kept_score(score, columns, keep, group), rel=1e-12)
    top = np.sort(score.astype(np.float64), axis=1)[:, columns.size - groups * keep :]
    assert found.row_bound == pytest.approx(top.sum(), rel=1e-12)
    assert found.kept_identity <= found.kept <= found.row_bound * (1 + 1e-12)
    assert 0 <= found.efficacy <= 1 + 1e-12
    assert found.gap == pytest.approx(found.upper_bound / found.kept - 1)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(2, 4), (1, 4), (3, 4)]), st.integers(1, 20), seeds)
@example(pattern=(2, 4), rows=13, seed=470)  # one exchange leads nowhere
@example(pattern=(2, 4), rows=10, seed=783621581)  # 200 rounds end in a local optimum
def test_eight_columns_find_their_optimum_and_both_bounds_hold(pattern, rows, seed):
    score = uniform(rows, 8, seed)
    best = reference.best_partition(score, *pattern)
    found = search(score, pattern, max_rounds=1000, bound="pricing")
    assert found.kept == pytest.approx(best, rel=1e-12)
    assert best * (1 - 1e-12) <= found.upper_bound <= found.row_bound


def test_twelve_columns_find_their_optimum():
    for seed in range(4):
        score = uniform(6, 12, seed)
        found = search(score, max_rounds=400)
        assert found.kept == pytest.approx(reference.best_partition(score, 2, 4), rel=1e-12)


def test_the_search_beats_plain_rounds_of_assignments():
    score = uniform(64, 64)
    plain = reference.kept_score(score, reference.optimize_permutation(score, "2:4", max_rounds=60), 2, 4)
    assert search(score, max_rounds=2000).kept > plain


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), seeds)
def test_the_twin_assigns_as_scipy_does(size, seed):
    from scipy.optimize import linear_sum_assignment

    gain = uniform(size, size, seed)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    found = reference.assign(gain)
    assert gain[np.arange(size), found].sum() == pytest.approx(gain[rows, columns].sum())


@pytest.mark.parametrize("shape", [(64, 96), (40, 1200)])  # several short searches; one with blocks of groups
def test_seed_and_rounds_decide_every_bit_whatever_the_threads(shape):
    score = uniform(*shape).astype(np.float32)
    runs = [search(score, max_rounds=12, seed=3, threads=threads) for threads in (1, 2, 5, None)]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.order, runs[0].order)
        assert (run.kept, run.rounds) == (runs[0].kept, runs[0].rounds)
    other = search(score, max_rounds=12, seed=4)
    assert (other.order != runs[0].order).any()


def test_column_scales_are_dealt_out_evenly():
    rng = np.random.default_rng(0)
    score = rng.random((96, 128)) * rng.lognormal(size=128)
    score = score[:, np.argsort(score.sum(axis=0))]  # the worst order there is
    assert search(score).efficacy > 0.8


def test_an_order_that_loses_nothing_stays():
    score = np.tile([[2.0, 1.0, 0.0, 0.0]], (5, 6))
    found = search(score)
    np.testing.assert_array_equal(found.order, np.arange(24))
    assert (found.efficacy, found.gap) == (1.0, 0.0)


def test_scores_of_zero_and_of_any_scale_are_searched():
    zero = search(np.zeros((3, 8)))
    assert (zero.kept, zero.gap, zero.efficacy) == (0.0, 0.0, 1.0)
    score = uniform(20, 32)
    orders = [search(score * scale, bound="pricing") for scale in (1.0, 2.0**-700, 2.0**800)]
    for found in orders[1:]:
        np.testing.assert_array_equal(found.order, orders[0].order)
        assert found.gap == pytest.approx(orders[0].gap, rel=1e-9)


def test_subnormal_scores_are_searched_and_sums_beyond_float64_refused():
    score = np.floor(uniform(16, 16) * 100)
    smallest = search(score * np.finfo(np.float64).smallest_subnormal, max_rounds=50)
    np.testing.assert_array_equal(smallest.order, search(score, max_rounds=50).order)
    with pytest.raises(ValueError, match="score: inf is not a sum inside float64"):
        search(np.full((4, 8), 1e308))


def test_the_trace_rises_from_the_given_order_to_the_result():
    found = search(uniform(128, 64), max_rounds=3000)
    seconds, kept = zip(*found.trace, strict=True)
    assert list(seconds) == sorted(seconds)
    assert list(kept) == sorted(kept)
    assert (kept[0], kept[-1]) == (found.kept_identity, found.kept)


def test_no_time_or_no_rounds_return_a_start_no_worse_than_the_given_order():
    for changes in ({"time_limit": 0.0}, {"max_rounds": 0}):
        found = search(uniform(8, 32), **changes)
        assert found.rounds == 0
        assert found.kept >= found.kept_identity


def test_time_ends_a_search_without_rounds():
    found = search(uniform(16, 32), max_rounds=None, time_limit=0.2)
    assert not found.interrupted
    assert found.kept >= found.kept_identity


def test_the_pricing_bound_is_far_below_that_by_rows():
    found = search(uniform(128, 48), bound="pricing", max_rounds=500)
    lost = found.row_bound - found.kept_identity
    ceiling = (found.upper_bound - found.kept_identity) / lost
    assert found.efficacy <= ceiling < found.efficacy + 0.05


def test_ctrl_c_returns_the_best_order_so_far():
    score = uniform(128, 64)
    with ctrl_c(0.5):
        found = search(score, max_rounds=10**9)
    assert found.interrupted
    assert found.kept > found.kept_identity


@pytest.mark.parametrize(
    ("score", "changes", "message"),
    [
        (np.ones((4, 770)), {}, "score: 770 columns is not a multiple of group = 4"),
        (-np.ones((4, 8)), {}, "score: -1 is not finite and >= 0"),
        (np.full((4, 8), np.nan), {}, r"score: entry \(0, 0\) is nan"),
        (np.ones((4, 8, 1)), {}, "score: shape .* has 3 dimensions, wanted 2"),
        (np.ones((0, 8)), {}, "is empty"),
        (np.ones((4, 8)), {"time_limit": -1}, "time_limit: -1 is not a number of seconds >= 0"),
        (np.ones((4, 8)), {"time_limit": float("nan")}, "time_limit: NaN is not"),
        (np.ones((4, 8)), {"max_rounds": -1}, "max_rounds: -1 is not an integer >= 0"),
        (np.ones((4, 8)), {"seed": -1}, "seed: -1 is not an integer >= 0"),
        (np.ones((4, 8)), {"threads": 0}, "threads: 0 is not an integer between 1 and 1024"),
        (np.ones((4, 8)), {"threads": 5000}, "threads: 5000 is not an integer between 1 and 1024"),
        (np.ones((4, 8)), {"bound": "lp"}, "bound: 'lp' is not 'row' or 'pricing'"),
        (np.ones((4, 132)), {"bound": "pricing"}, "score: number of columns: 132 is not 128 or less"),
    ],
)
def test_arguments_out_of_range_are_named(score, changes, message):
    with pytest.raises(ValueError, match=message):
        search(score, **changes)


def test_the_pricing_bound_is_for_groups_of_four():
    with pytest.raises(ValueError, match="pattern: group size: 8 is not 4"):
        search(np.ones((4, 16)), "4:8", bound="pricing")
