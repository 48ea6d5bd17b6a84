from __future__ import annotations

import numpy as np
import pytest
from fakes import ctrl_c
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcore import reference
from mpcore.compensate import admm, lstsq, output_error, sparsegpt

PATTERNS = [(2, 4), (1, 4), (3, 4), (4, 8), (8, 16), (1, 2), (2, 3)]


def inputs(samples: int, columns: int, seed: int) -> np.ndarray:
    """Correlated inputs with a falling spectrum and uneven scales, as activations have."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(columns, columns)))
    spectrum = np.arange(1, columns + 1) ** -0.7
    return (rng.normal(size=(samples, columns)) * spectrum) @ basis * np.exp(0.5 * rng.normal(size=columns))


def problem(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = inputs(4 * columns, columns, seed)
    weights = np.random.default_rng(seed + 1).normal(size=(rows, columns))
    return weights.astype(np.float32), x.T @ x / len(x)


def wanda(W: np.ndarray, gram: np.ndarray, keep: int, group: int) -> np.ndarray:
    return reference.largest(np.abs(W) * np.sqrt(np.diag(gram)), keep, group)


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


def in_pattern(W: np.ndarray, keep: int, group: int) -> bool:
    return bool((np.count_nonzero(W.reshape(len(W), -1, group), axis=2) <= keep).all())


problems = st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from(PATTERNS), st.integers(0, 10_000))


# oracle


@settings(max_examples=40, deadline=None)
@given(problems)
def test_lstsq_is_the_exact_minimum_on_the_support(case):
    rows, groups, (keep, group), seed = case
    W, gram = problem(rows, groups * group, seed)
    mask = wanda(W, gram, keep, group)
    fast = lstsq(W, gram, mask, damping=0.1, steps=300)
    slow = reference.lstsq(W, gram, mask, 0.1)
    np.testing.assert_allclose(fast, slow, atol=2e-4 * np.abs(W).max())


@settings(max_examples=40, deadline=None)
@given(problems, st.booleans())
def test_sparsegpt_equals_column_by_column_removal(case, prescribed):
    rows, groups, (keep, group), seed = case
    W, gram = problem(rows, groups * group, seed)
    mask = wanda(W, gram, keep, group) if prescribed else None
    fast = sparsegpt(W, gram, (keep, group), damping=0.1, mask=mask)
    slow = reference.sparsegpt(W, gram, keep, group, 0.1, mask)
    np.testing.assert_allclose(fast, slow, atol=1e-4 * np.abs(slow).max())


def test_sparsegpt_carries_errors_across_blocks_of_columns():
    W, gram = problem(70, 140, 3)  # more rows than a row block, columns than a column block, neither a multiple
    slow = reference.sparsegpt(W, gram, 2, 4, 0.01)
    fast = sparsegpt(W, gram, "2:4")
    assert (np.mean((fast != 0) == (slow != 0))) > 0.999
    assert output_error(W, fast, gram) == pytest.approx(output_error(W, slow, gram), rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(problems)
def test_admm_follows_its_slow_twin(case):
    rows, groups, (keep, group), seed = case
    W, gram = problem(rows, groups * group, seed)
    fast = admm(W, gram, (keep, group), damping=0.05, steps=30)
    slow = reference.admm(W, gram, keep, group, 0.05, 30)
    np.testing.assert_allclose(fast, slow, atol=1e-3 * np.abs(slow).max())


@pytest.mark.parametrize(("rows", "columns"), [(130, 64), (70, 96)])  # both routes of the resolvent, uneven row blocks
def test_admm_on_a_larger_layer_is_as_good_as_its_slow_twin(rows, columns):
    W, gram = problem(rows, columns, 5)
    slow = reference.admm(W, gram, 2, 4, 0.01, 50)
    fast = admm(W, gram, "2:4")
    assert np.mean((fast != 0) == (slow != 0)) > 0.995
    assert output_error(W, fast, gram) == pytest.approx(output_error(W, slow, gram), rel=3e-3)


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_output_error_is_the_change_of_the_outputs(rows, columns, seed):
    x = inputs(50, columns, seed)
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(rows, columns))
    pruned = W * (rng.random(W.shape) < 0.7)
    assert output_error(W, pruned, x.T @ x) == pytest.approx(reference.output_error(W, pruned, x), rel=1e-9, abs=1e-12)


# properties


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("solve", [admm, sparsegpt])
def test_pruned_weights_lie_in_the_pattern_with_positive_zeros(solve, pattern):
    W, gram = problem(6, 4 * pattern[1], 7)
    pruned = solve(W, gram, pattern)
    assert pruned.dtype == np.float32
    assert pruned.shape == W.shape
    assert in_pattern(pruned, *pattern)
    assert not np.signbit(pruned[pruned == 0]).any()


@pytest.mark.parametrize("seed", range(4))
def test_compensation_orders_the_methods_as_on_real_layers(seed):
    W, gram = problem(64, 96, seed)
    error = {"wanda": output_error(W, W * wanda(W, gram, 2, 4), gram)}
    error["wanda + lstsq"] = output_error(W, lstsq(W, gram, wanda(W, gram, 2, 4)), gram)
    sparse = sparsegpt(W, gram, "2:4")
    error["sparsegpt"] = output_error(W, sparse, gram)
    error["sparsegpt + lstsq"] = output_error(W, lstsq(W, gram, sparse != 0), gram)
    error["admm"] = output_error(W, admm(W, gram, "2:4"), gram)
    assert error["admm"] < 0.95 * error["sparsegpt + lstsq"] < 0.95 * error["sparsegpt"]
    assert error["admm"] < 0.7 * error["sparsegpt"]
    assert error["sparsegpt + lstsq"] < error["wanda + lstsq"] < 0.5 * error["wanda"]


def test_uncorrelated_inputs_leave_wandas_mask_and_the_dense_weights():
    W, _ = problem(5, 16, 1)
    gram = np.diag(np.linspace(0.5, 2.0, 16))
    mask = reference.largest(np.abs(W) * np.sqrt(np.diag(gram)), 2, 4)
    for pruned in (admm(W, gram, "2:4", damping=0), sparsegpt(W, gram, "2:4", damping=0), lstsq(W, gram, mask)):
        np.testing.assert_allclose(pruned, W * mask, rtol=1e-5)


@pytest.mark.parametrize("solve", [admm, sparsegpt])
def test_results_are_the_same_bits_for_any_number_of_threads(solve):
    W, gram = problem(150, 64, 2)
    once = bits(solve(W, gram, "2:4"))
    assert all(bits(solve(W, gram, "2:4", threads=threads)) == once for threads in (1, 2, 5))
    mask = wanda(W, gram, 2, 4)
    refitted = bits(lstsq(W, gram, mask))
    assert all(bits(lstsq(W, gram, mask, threads=threads)) == refitted for threads in (1, 2, 5))


@pytest.mark.parametrize("exponent", [-100, 100])
def test_scaling_the_weights_scales_the_result(exponent):
    W, gram = problem(4, 16, 9)
    factor = np.float32(2.0**exponent)
    np.testing.assert_allclose(admm(W * factor, gram, "2:4") / factor, admm(W, gram, "2:4"), rtol=1e-5)


@pytest.mark.parametrize(("of_weights", "of_moments"), [(1e-170, 1.0), (1e170, 1.0), (1e37, 1e250), (1e-300, 1e-300)])
def test_the_output_error_knows_no_scale(of_weights, of_moments):
    W, gram = problem(3, 8, 1)
    W = W.astype(np.float64)
    pruned = np.maximum(W, 0.0)
    found = output_error(W * of_weights, pruned * of_weights, gram * of_moments)
    assert found == pytest.approx(output_error(W, pruned, gram), rel=1e-12)


def test_scaling_the_moments_changes_nothing():
    W, gram = problem(4, 16, 9)
    np.testing.assert_allclose(admm(W, gram * 1e12, "2:4"), admm(W, gram, "2:4"), rtol=1e-5)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_weights_on_dead_inputs_are_given_up_first(damping):
    W, gram = problem(8, 16, 4)
    gram[::4] = gram[:, ::4] = 0
    for solve in (admm, sparsegpt):
        pruned = solve(W, gram, "3:4", damping=damping)
        assert (pruned[:, ::4] == 0).mean() > (0.9 if damping == 0 else 0.5)
        assert output_error(W, pruned, gram) < (1e-6 if damping == 0 else 0.1)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_moments_of_fewer_samples_than_columns_are_fine(damping):
    x = inputs(6, 32, 1)
    W = np.random.default_rng(0).normal(size=(4, 32))
    gram = x.T @ x / 6
    mask = wanda(W, gram, 2, 4)
    for pruned in (
        admm(W, gram, "2:4", damping=damping),
        sparsegpt(W, gram, "2:4", damping=damping),
        lstsq(W, gram, mask, damping=damping),
    ):
        assert np.isfinite(pruned).all()
        assert output_error(W, pruned, gram) < output_error(W, W * mask, gram)


def test_without_any_input_magnitudes_decide():
    W, _ = problem(3, 8, 0)
    mask = reference.largest(np.abs(W), 2, 4)
    for pruned in (admm(W, np.zeros((8, 8)), "2:4"), sparsegpt(W, np.zeros((8, 8)), "2:4")):
        np.testing.assert_allclose(pruned, W * mask, rtol=1e-6)
    assert output_error(W, W * mask, np.zeros((8, 8))) == 0


def test_zero_weights_stay_zero():
    _, gram = problem(1, 8, 0)
    zero = np.zeros((3, 8), np.float32)
    for pruned in (admm(zero, gram, "2:4"), sparsegpt(zero, gram, "2:4"), lstsq(zero, gram, zero == 0)):
        assert bits(pruned) == bits(zero)
    assert output_error(zero, zero, gram) == 0
    assert output_error(zero, zero + 1, gram) == np.inf


def test_lstsq_takes_any_support():
    W, gram = problem(4, 10, 0)
    mask = np.zeros((4, 10), bool)
    assert bits(lstsq(W, gram, mask)) == bytes(160)
    np.testing.assert_allclose(lstsq(W, gram, ~mask), W, rtol=1e-6)


def test_strided_half_and_torch_like_inputs_are_taken():
    W, gram = problem(8, 16, 0)

    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.asfortranarray(W)

    assert bits(admm(Tensor(), np.asfortranarray(gram), "2:4")) == bits(admm(W, gram, "2:4"))
    assert bits(admm(W[::2], gram, "2:4")) == bits(admm(W[::2].copy(), gram, "2:4"))
    assert admm(W.astype(np.float16), gram.astype(np.float32), "2:4").dtype == np.float32


def test_ctrl_c_ends_a_long_run():
    W, gram = problem(64, 64, 0)
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.05):
        lstsq(W, gram, np.ones(W.shape, dtype=bool), damping=0, steps=10**9)


# worked example


def test_a_removed_weight_moves_to_its_correlated_neighbour():
    gram = np.array([[1.0, 0.5], [0.5, 1.0]])
    np.testing.assert_allclose(admm(np.array([[2.0, 1.0]]), gram, "1:2", damping=0), [[2.5, 0.0]], rtol=1e-5)
    assert output_error(np.array([[2.0, 1.0]]), np.array([[2.5, 0.0]]), gram) == pytest.approx(0.75 / 7)


# rejection


W8, H8 = problem(2, 8, 0)


@pytest.mark.parametrize("solve", [admm, sparsegpt])
@pytest.mark.parametrize(
    ("W", "gram", "pattern", "message"),
    [
        (W8[:, :6], H8[:6, :6], "2:4", "weight: 6 columns is not a multiple of group = 4"),
        (W8, H8[:4, :4], "2:4", r"gram: shape \(4, 4\) is not \(8, 8\)"),
        (W8, H8, "4:4", "N:M needs 1 <= N < M <= 32"),
        (W8[0], H8, "2:4", "W: shape .* has 1 dimensions"),
        (W8[:0], H8, "2:4", "W: shape .* is empty"),
        (np.where(W8[1, 2] == W8, np.nan, W8), H8, "2:4", r"W: entry \(1, 2\) is nan"),
        (W8.astype(np.float64) * 1e300, H8, "2:4", r"weight: entry \(0, 0\) is -?inf"),
        (W8, H8 + np.triu(np.ones((8, 8)), 1), "2:4", r"gram: entry \(1, 0\) is .* wanted a symmetric matrix"),
        (W8, H8 - 2 * np.diag(np.diag(H8)), "2:4", "gram: not positive semidefinite, diagonal entry 0 is -"),
        (W8, np.ones((8, 8)) - np.eye(8), "2:4", "gram: not positive semidefinite, the diagonal is zero"),
        (W8, 3 * np.ones((8, 8)) - 2 * np.eye(8), "2:4", "gram: not positive semidefinite, the (smallest|Chol)"),
    ],
)
def test_unfit_arguments_are_named(solve, W, gram, pattern, message):
    with pytest.raises(ValueError, match=message):
        solve(W, gram, pattern)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_damping_out_of_range_is_named(value):
    with pytest.raises(ValueError, match=r"damping: .* is not between 0 and 1e6"):
        admm(W8, H8, "2:4", damping=value)


@pytest.mark.parametrize("threads", [0, -1, 100_000, 1.5])
def test_absurd_numbers_of_threads_are_named(threads):
    with pytest.raises(ValueError, match=f"threads: {threads} is not an integer between 1 and 1024"):
        admm(W8, H8, "2:4", threads=threads)


def test_masks_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"mask: shape \(1, 8\), wanted \(2, 8\)"):
        lstsq(W8, H8, np.ones((1, 8), bool))
    with pytest.raises(TypeError, match="mask: dtype float64 is not bool"):
        lstsq(W8, H8, np.ones((2, 8)))
    with pytest.raises(ValueError, match="mask: row 0, group 0 keeps 4 of 4, pattern 2:4 allows 2"):
        sparsegpt(W8, H8, "2:4", mask=np.ones((2, 8), bool))


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="steps: -1 is not an integer >= 0"):
        admm(W8, H8, "2:4", steps=-1)
    with pytest.raises(TypeError, match="W: dtype int64"):
        admm(W8.astype(np.int64), H8, "2:4")
    with pytest.raises(ValueError, match=r"W_pruned: shape \(2, 4\) is not that of W"):
        output_error(W8, W8[:, :4], H8)
