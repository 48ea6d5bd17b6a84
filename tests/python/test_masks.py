from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from fakes import ctrl_c
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpcore import Pattern, _native, check_mask, nm_mask, quadratic_mask, reference, transposable_mask

Array = NDArray[np.float64]

patterns = st.tuples(st.integers(1, 16), st.integers(1, 16)).map(lambda pair: (pair[0], sum(pair)))
small_patterns = st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (2, 5), (4, 8)])
seeds = st.integers(0, 2**32 - 1)
precisions = st.sampled_from([np.float16, np.float32, np.float64])


def moments(rng: np.random.Generator, groups: int, group: int) -> Array:
    inputs = rng.normal(size=(groups, group, 2 * group))
    return inputs @ inputs.transpose(0, 2, 1) / (2 * group)


# nm_mask


@settings(max_examples=60, deadline=None)
@given(patterns, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3), precisions, seeds)
def test_the_mask_is_a_stable_sort_of_every_group_along_any_axis(pattern, shape, place, precision, seed):
    keep, group = pattern
    axis = place % len(shape)
    shape[axis] *= group
    rng = np.random.default_rng(seed)
    score = np.round(2 * rng.normal(size=shape)).astype(precision)
    for view in (score, np.asfortranarray(score), np.repeat(score, 2, axis=0)[::2], score[..., ::-1], -score):
        mask = nm_mask(view, pattern, axis=axis)
        np.testing.assert_array_equal(mask, reference.nm_mask(view, keep, group, axis))


@settings(max_examples=30, deadline=None)
@given(patterns, st.integers(1, 40), st.integers(1, 40), seeds)
def test_masks_keep_exactly_n_of_m(pattern, rows, groups, seed):
    keep, group = pattern
    mask = nm_mask(np.random.default_rng(seed).random((rows, groups * group), dtype=np.float32), pattern)
    assert (mask.reshape(rows, groups, group).sum(axis=2) == keep).all()
    check_mask(mask, pattern)


def test_a_large_mask_is_that_of_the_twin():
    score = np.random.default_rng(0).random((301, 12 * 97))
    np.testing.assert_array_equal(nm_mask(score, "6:12"), reference.nm_mask(score, 6, 12))


def test_a_convolution_is_grouped_along_its_input_channels():
    score = np.random.default_rng(0).random((5, 16, 3, 3), dtype=np.float32)
    mask = nm_mask(score, "2:4", axis=1)
    np.testing.assert_array_equal(mask, reference.nm_mask(score, 2, 4, axis=1))
    check_mask(mask, "2:4", axis=1)


def test_ties_go_to_the_lower_index_and_signed_zeros_are_equal():
    np.testing.assert_array_equal(nm_mask(np.array([[-0.0, 0.0, -0.0, 0.0]]), "2:4"), [[True, True, False, False]])
    np.testing.assert_array_equal(nm_mask(np.array([[1.0, 3.0, 3.0, 3.0]]), "2:4"), [[False, True, True, False]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_of_any_precision_are_taken(dtype):
    score = torch.tensor([[0.5, -1.0, 2.0, 1.0]], dtype=dtype, requires_grad=True)
    np.testing.assert_array_equal(nm_mask(score, (2, 4)), [[False, False, True, True]])


def test_the_mask_has_the_memory_order_of_the_score():
    score = np.asfortranarray(np.random.default_rng(0).random((6, 8)))
    assert nm_mask(score, "2:4").flags.f_contiguous
    assert nm_mask(np.ascontiguousarray(score), "2:4").flags.c_contiguous


@pytest.mark.parametrize(
    ("score", "axis", "message"),
    [
        (np.ones((4, 770)), -1, "score: 770 columns is not a multiple of group = 4"),
        (np.ones((6, 8)), 0, "score: 6 columns is not a multiple of group = 4"),
        (np.full((1, 4), np.nan), -1, r"score: entry \(0, 0\) is nan"),
        (np.array([[[0.0] * 4, [0, 0, np.inf, 0]]]).transpose(2, 1, 0), 0, r"score: entry \(2, 1, 0\) is inf"),
        (np.ones((0, 4)), -1, "score: shape .0, 4. is empty"),
        (np.ones((4, 4)), 2, "axis 2: score has 2 dimensions"),
    ],
)
def test_scores_that_cannot_be_masked_are_named(score, axis, message):
    with pytest.raises(ValueError, match=message):
        nm_mask(score, "2:4", axis=axis)


@pytest.mark.parametrize("dtype", [bool, np.int32, complex])
def test_scores_that_are_not_floating_point_are_refused(dtype):
    with pytest.raises(TypeError, match="score: dtype"):
        nm_mask(np.ones((1, 4), dtype), "2:4")


@pytest.mark.parametrize("pattern", ["4:4", "0:4", "1:33", "x", (2,), 4])
def test_patterns_that_are_none_are_refused(pattern):
    with pytest.raises(ValueError, match="pattern"):
        nm_mask(np.ones((1, 4)), pattern)


# check_mask


def test_check_mask_names_the_first_bad_group():
    mask = np.zeros((3, 12), bool)
    mask[1, 8:11] = mask[2, :4] = True
    with pytest.raises(ValueError, match="mask: row 1, group 2 keeps 3 of 4, pattern 2:4 allows 2"):
        check_mask(mask, "2:4")
    check_mask(mask, "1:3", axis=0)
    mask[2, 9] = True
    with pytest.raises(ValueError, match="mask: row 9, group 0 keeps 2 of 3, pattern 1:3 allows 1"):
        check_mask(torch.from_numpy(mask), "1:3", axis=0)


def test_check_mask_takes_booleans_only():
    with pytest.raises(TypeError, match="mask: dtype float64 is not bool"):
        check_mask(np.ones((1, 4)), "2:4")


def test_fewer_entries_than_n_are_allowed():
    check_mask(np.zeros((0, 4), bool), "2:4")
    check_mask(np.zeros((2, 4), bool), Pattern("2:4"))


# quadratic_mask


@settings(max_examples=25, deadline=None)
@given(small_patterns, st.integers(1, 20), st.integers(1, 3), st.sampled_from([None, 0.0, 0.3, 5.0]), seeds)
def test_no_pattern_has_a_lower_quadratic_cost(pattern, rows, groups, weight, seed):
    keep, group = pattern
    rng = np.random.default_rng(seed)
    W, gram = rng.normal(size=(rows, groups * group)), moments(rng, groups, group)
    target = None if weight is None else nm_mask(rng.random(W.shape), pattern)
    extra = {} if weight is None else {"target": target, "target_weight": weight}
    mask = quadratic_mask(W, gram, pattern, **extra)
    best = reference.quadratic_mask(W, gram, keep, group, **extra)
    cost = reference.quadratic_cost(W, gram, mask, keep=keep, **extra)
    least = reference.quadratic_cost(W, gram, best, keep=keep, **extra)
    np.testing.assert_allclose(cost, least, rtol=1e-10, atol=1e-12)
    assert (mask.reshape(rows, groups, group).sum(axis=2) == keep).all()


def test_at_8_of_16_all_12870_patterns_are_tried():
    rng = np.random.default_rng(3)
    W, gram = rng.normal(size=(2, 16)), moments(rng, 1, 16)
    cost = reference.quadratic_cost(W, gram, quadratic_mask(W.astype(np.float32), gram, "8:16"))
    removed = np.array([~np.isin(np.arange(16), kept) for kept in itertools.combinations(range(16), 8)])
    every = np.einsum("rpi,ij,rpj->rp", W[:, None] * removed, gram[0], W[:, None] * removed)
    np.testing.assert_allclose(cost[:, 0], every.min(axis=1), rtol=1e-5)


def test_without_correlations_the_quadratic_mask_is_the_top_n_of_the_energies():
    rng = np.random.default_rng(0)
    W, energy = rng.normal(size=(9, 24)), rng.random((3, 8))
    mask = quadratic_mask(W, energy[:, :, None] * np.eye(8), "4:8")
    np.testing.assert_array_equal(mask, nm_mask(W**2 * energy.ravel(), "4:8"))


@pytest.mark.parametrize(("of_weights", "of_moments"), [(1e200, 1e200), (1e-200, 1e-150), (1.0, 2.0**1000)])
def test_the_size_of_weights_and_moments_changes_no_mask(of_weights, of_moments):
    rng = np.random.default_rng(3)
    W, gram, target = rng.normal(size=(9, 12)), moments(rng, 3, 4), rng.random((9, 12)) < 0.5
    for extra in ({}, {"target": target, "target_weight": 0.3}):
        wanted = quadratic_mask(W, gram, "2:4", **extra)
        np.testing.assert_array_equal(quadratic_mask(W * of_weights, gram * of_moments, "2:4", **extra), wanted)


def test_a_heavy_target_is_met_where_it_can_be():
    rng = np.random.default_rng(0)
    W, target = rng.normal(size=(5, 8)), nm_mask(rng.random((5, 8)), "2:4")
    mask = quadratic_mask(W, moments(rng, 2, 4), "2:4", target=target, target_weight=1e6)
    np.testing.assert_array_equal(mask, target)


@pytest.mark.parametrize(
    ("W", "gram", "extra", "message"),
    [
        (np.ones((2, 6)), np.ones((1, 4, 4)), {}, "W: 6 columns is not a multiple of group = 4"),
        (np.ones((2, 8)), np.ones((1, 4, 4)), {}, r"gram: shape \(1, 4, 4\) does not fit W of shape \(2, 8\)"),
        (np.ones((2, 8)), np.full((2, 4, 4), np.inf), {}, r"gram: entry \(0, 0, 0\) is inf"),
        (np.ones((2, 8)), np.ones((2, 4, 4)), {"target": np.ones((2, 4), bool)}, r"target: shape \(2, 4\)"),
        (
            np.ones((2, 8)),
            np.ones((2, 4, 4)),
            {"target": np.ones((2, 8), bool), "target_weight": -1},
            "target_weight: -1 is not between 0 and 1e100",
        ),
    ],
)
def test_quadratic_arguments_that_do_not_fit_are_named(W, gram, extra, message):
    with pytest.raises(ValueError, match=message):
        quadratic_mask(W, gram, "2:4", **extra)


def test_a_pattern_too_large_to_enumerate_is_refused():
    with pytest.raises(ValueError, match="pattern: 601080390 is not"):
        quadratic_mask(np.ones((1, 32)), np.ones((1, 32, 32)), "16:32")


# transposable_mask


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (2, 3), (3, 5)]), st.integers(1, 3), st.integers(1, 3), seeds)
def test_no_transposable_mask_keeps_more(pattern, above, beside, seed):
    keep, group = pattern
    score = np.random.default_rng(seed).normal(size=(above * group, beside * group))
    mask = transposable_mask(score, pattern)
    for i in range(0, len(score), group):
        for j in range(0, score.shape[1], group):
            block, kept = score[i : i + group, j : j + group], mask[i : i + group, j : j + group]
            assert (kept.sum(axis=0) == keep).all()
            assert (kept.sum(axis=1) == keep).all()
            assert block[kept].sum() == pytest.approx(reference.transposable_value(block, keep))


def test_a_transposable_mask_is_as_good_as_its_linear_program():
    from scipy.optimize import linprog

    score = np.random.default_rng(0).random((16, 16))
    mask = transposable_mask(score, "8:16")
    sums = np.vstack([np.kron(np.eye(16), np.ones(16)), np.kron(np.ones(16), np.eye(16))])
    best = -linprog(-score.ravel(), A_eq=sums, b_eq=np.full(32, 8.0), bounds=(0, 1)).fun
    assert (score * mask).sum() == pytest.approx(best, abs=1e-9)


def test_scores_at_the_ends_of_float64_have_transposable_masks():
    signs = np.array([[1.0, -1.0], [-1.0, 1.0]])
    for size in (np.finfo(np.float64).max, np.finfo(np.float64).smallest_subnormal):
        np.testing.assert_array_equal(transposable_mask(signs * size, "1:2"), signs > 0)


def test_rows_that_m_does_not_divide_have_no_transposable_mask():
    with pytest.raises(ValueError, match="score: 6 is not a number of rows that is a multiple of group = 4"):
        transposable_mask(np.ones((6, 4)), "2:4")


def test_ctrl_c_ends_a_long_search_for_masks():
    rng = np.random.default_rng(0)
    W, gram = np.tile(rng.normal(size=(4096, 1024)), (4, 1)), moments(rng, 64, 16)
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.5):
        quadratic_mask(W, gram, "8:16")


# Every version of the kernels

ACCOUNT = """
import hashlib, numpy as np, mpcore
rng, total = np.random.default_rng(0), hashlib.sha256()
for pattern in ("2:4", "3:4", "4:8", "8:16", "5:24", "31:32", "5:7"):
    columns = 9 * int(pattern.partition(":")[2])
    for score in (rng.random((37, columns), dtype=np.float32), np.round(2 * rng.normal(size=(37, columns)))):
        total.update(mpcore.nm_mask(score, pattern).tobytes())
        total.update(mpcore.nm_mask(score.astype(np.float32), pattern).tobytes())
W, gram = rng.normal(size=(20, 16)), np.eye(8)[None] + rng.random((2, 1, 1))
total.update(mpcore.quadratic_mask(W, gram, "4:8").tobytes())
for shape, pattern in (((40, 64), "2:4"), ((130, 96), "4:8")):
    found = mpcore.optimize_permutation(rng.random(shape), pattern, max_rounds=40, time_limit=600, threads=2)
    total.update(found.order.tobytes())
print(total.hexdigest())
"""


def run_with_kernels(name: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MPCORE_KERNELS"}
    if name is not None:
        environment["MPCORE_KERNELS"] = name
    command = [sys.executable, "-c", ACCOUNT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_version_of_the_kernels_that_this_cpu_has_gives_the_same_bits():
    widest = run_with_kernels(None)
    assert widest.returncode == 0, widest.stderr
    assert 'MPCORE_KERNELS: "none" is not one of portable' in run_with_kernels("none").stderr
    for name in _native.instruction_sets():
        assert run_with_kernels(name).stdout == widest.stdout, name
