"""Edges of synthetic matrices with known truth, singular values against LAPACK, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpcore
from mpcore import EdgeFit, SpectraReport, fit_edge, fit_edges, mp, reference, svd, svdvals
from mpcore.checkpoint import save_tensors

Array = np.ndarray[Any, Any]
shapes = st.tuples(st.integers(2, 70), st.integers(2, 70))


def noise(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, rows, columns]).standard_normal((rows, columns))


def signal(rows: int, columns: int, strengths: Array, seed: int = 0) -> Array:
    """Matrix with these singular values, in units of the edge of unit noise, and random vectors."""
    rng = np.random.default_rng([seed, 99])
    left = np.linalg.qr(rng.standard_normal((rows, len(strengths))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, len(strengths))))[0]
    return (left * (strengths * edge_of(rows, columns))) @ right.T


def edge_of(rows: int, columns: int, spikes: int = 0) -> float:
    return math.sqrt(rows - spikes) + math.sqrt(columns - spikes)


# svdvals


@settings(max_examples=40)
@given(shape=shapes, seed=st.integers(0, 1000), dtype=st.sampled_from([np.float16, np.float32, np.float64]))
def test_singular_values_equal_lapacks(shape: tuple[int, int], seed: int, dtype: Any) -> None:
    W = noise(*shape, seed).astype(dtype)
    exact = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    ours = svdvals(W)
    assert ours.dtype == np.float64
    assert (np.diff(ours) <= 0).all()
    assert np.abs(ours - exact).max() <= (1e-10 if dtype == np.float64 else 1e-7) * exact[0]


@given(rank=st.integers(1, 5), shape=st.tuples(st.integers(6, 60), st.integers(6, 60)))
def test_values_beyond_the_rank_vanish(rank: int, shape: tuple[int, int]) -> None:
    W = noise(shape[0], rank) @ noise(rank, shape[1])
    ours = svdvals(W)
    assert np.abs(ours - np.linalg.svd(W, compute_uv=False)).max() <= 1e-13 * ours[0]


def test_hard_spectra_keep_their_small_values() -> None:
    left, right = np.linalg.qr(noise(60, 60))[0], np.linalg.qr(noise(60, 60, 1))[0]
    values = 10.0 ** -np.linspace(0, 12, 60)
    assert svdvals((left * values) @ right) == pytest.approx(values, rel=1e-2, abs=1e-14)


@pytest.mark.parametrize("power", [-1040, -530, 500, 1000])
def test_a_power_of_two_changes_no_digit(power: int) -> None:
    W = np.round(noise(20, 31) * 2**20) / 2**20
    assert (svdvals(np.ldexp(W, power)) == np.ldexp(svdvals(W), power)).all()


def test_transposes_and_strides_change_no_digit_and_threads_no_bit() -> None:
    W = noise(150, 340).astype(np.float32)
    base = svdvals(W)
    assert (svdvals(W.T) == base).all()
    assert (svdvals(np.asfortranarray(W)) == base).all()
    assert svdvals(W[::-1, ::-1]) == pytest.approx(base, rel=1e-12)
    assert all((svdvals(W, threads=threads) == base).all() for threads in (1, 2, 3))


def test_tensors_and_bfloat16_are_taken() -> None:
    import ml_dtypes
    import torch

    W = noise(12, 20).astype(ml_dtypes.bfloat16)
    tensor = torch.nn.Parameter(torch.from_numpy(W.astype(np.float32)).to(torch.bfloat16))
    assert (svdvals(W) == svdvals(tensor)).all()


def test_a_zero_matrix_has_zero_values() -> None:
    assert svdvals(np.zeros((3, 5), np.float32)).tolist() == [0, 0, 0]


# svd


@pytest.mark.parametrize("shape", [(200, 300), (300, 150), (260, 260), (40, 30), (1, 9)])
def test_leading_triplets_equal_lapacks(shape: tuple[int, int]) -> None:
    W = noise(*shape)
    if min(shape) > 12:
        W += signal(*shape, np.linspace(0.5, 5, 12))
    k = min(20, min(shape))
    U, s, Vt, info = svd(W, k, tol=1e-9)
    assert s == pytest.approx(np.linalg.svd(W, compute_uv=False)[:k], rel=1e-9)
    assert np.abs(U.T @ U - np.eye(k)).max() < 1e-10
    assert np.abs(Vt @ Vt.T - np.eye(k)).max() < 1e-10
    assert info.converged
    assert info.matvecs > 0


@pytest.mark.parametrize("method", ["krylov", "fast"])
def test_residuals_are_those_of_the_returned_triplets(method: str) -> None:
    W = noise(220, 400) + signal(220, 400, np.geomspace(0.5, 5, 10))
    U, s, Vt, info = svd(W, 8, method=method, tol=1e-6)
    one = np.linalg.norm(W @ Vt.T - U * s, axis=0)
    other = np.linalg.norm(W.T @ U - Vt.T * s, axis=0)
    assert info.residuals == pytest.approx(np.maximum(one, other) / s[0], rel=1e-3, abs=1e-14)
    assert info.converged == bool((info.residuals <= 1e-6).all())


def test_triplets_depend_on_the_seed_only() -> None:
    W = (noise(300, 500) + signal(300, 500, np.linspace(1, 3, 6))).astype(np.float32)
    first = svd(W, 10, seed=4)
    for threads in (1, 3):
        again = svd(W, 10, seed=4, threads=threads)
        assert (again.U == first.U).all()
        assert (again.s == first.s).all()
    assert first.U.dtype == np.float32
    assert first.s == pytest.approx(svdvals(W)[:10], rel=1e-6)


def test_extreme_scales_and_low_rank_have_triplets() -> None:
    W = noise(150, 3) @ noise(3, 200)
    for factor in (1e-160, 1.0, 1e150):
        U, s, _, info = svd(W * factor, 5)
        assert s[3] <= 1e-7 * s[0]
        assert np.abs(U.T @ U - np.eye(5)).max() < 1e-10
        assert info.converged


def test_a_tolerance_out_of_reach_is_an_error() -> None:
    values = np.concatenate([[1.0], np.full(299, 1e-9)])
    W = np.diag(values) + 1e-12 * noise(300, 300)
    with pytest.raises(mpcore.ConvergenceError, match="svd did not converge: largest residual"):
        svd(W, 40, tol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: 0 is not an integer between 1 and 4"),
        ({"k": 5}, "k: 5 is not"),
        ({"k": True}, "k: True is not"),
        ({"k": 1, "tol": 0.0}, "tol: 0.0 is not in"),
        ({"k": 1, "method": "arpack"}, "method: 'arpack' is not"),
        ({"k": 1, "seed": 2**64}, "seed: 18446744073709551616 is not"),
        ({"k": 1, "threads": 10**5}, "threads: 100000 is not an integer between 1 and 1024"),
    ],
)
def test_svd_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        svd(noise(4, 6), **arguments)


def test_no_more_threads_are_started_than_make_sense() -> None:
    with pytest.raises(ValueError, match="threads: 100000 is not an integer between 1 and 1024"):
        svdvals(noise(4, 5), threads=100_000)


# fit_edge: truth


@pytest.mark.parametrize("shape", [(256, 1024), (400, 400), (128, 150)])
def test_pure_noise_has_no_spikes_and_its_own_edge(shape: tuple[int, int]) -> None:
    fits = [fit_edge(0.02 * noise(*shape, seed).astype(np.float32)) for seed in range(6)]
    edge = 0.02 * edge_of(*shape)
    # Standard error of the variance sqrt(2 / (pn)), of a mean of six; four of those and the finite-size 0.1 %.
    limit = 4 * math.sqrt(2 / (shape[0] * shape[1]) / 6) + 1e-3
    assert abs(np.mean([fit.edge**2 for fit in fits]) / edge**2 - 1) < limit
    assert sum(fit.n_spikes == 0 for fit in fits) >= 5
    assert sum(fit.gof.accepted for fit in fits) >= 5
    assert all(abs(fit.sigma_free / edge - 1) < 0.03 for fit in fits if fit.sigma_free)


@pytest.mark.parametrize(
    ("shape", "strengths"),
    [
        ((256, 1024), np.linspace(1.6, 4, 13)),
        ((512, 256), 1.5 * (np.arange(1, 52) / 51) ** -0.7),
        ((300, 300), np.linspace(1.3, 40, 20)),
    ],
)
def test_planted_spikes_are_counted_and_leave_the_edge_alone(shape: tuple[int, int], strengths: Array) -> None:
    count = len(strengths)
    for seed in range(3):
        fit = fit_edge(noise(*shape, seed) + signal(*shape, strengths, seed))
        assert fit.n_spikes == count
        assert fit.model_used == "mp"
        assert (fit.edge / edge_of(*shape, count)) ** 2 == pytest.approx(1, abs=0.02)
        found = np.array([spike.strength for spike in fit.spikes]) / edge_of(*shape)
        assert found == pytest.approx(np.sort(strengths)[::-1], rel=0.08)
        assert all(spike.p_value < fit.alpha for spike in fit.spikes)


def test_overlaps_are_those_of_the_vectors() -> None:
    shape, rng = (300, 900), np.random.default_rng(5)
    u, v = rng.standard_normal(300), rng.standard_normal(900)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    W = noise(*shape) + 1.2 * edge_of(*shape) * np.outer(u, v)
    for matrix, true_left, true_right in ((W, u, v), (W.T, v, u)):
        spike = fit_edge(matrix).spikes[0]
        U, _, Vt, _ = svd(matrix, 1)
        assert spike.overlap_left == pytest.approx(abs(U[:, 0] @ true_left), abs=0.03)
        assert spike.overlap_right == pytest.approx(abs(Vt[0] @ true_right), abs=0.03)


def test_a_row_profile_is_no_signal() -> None:
    for seed in range(3):
        profile = np.sqrt(np.random.default_rng(seed).uniform(0.3, 1.7, (256, 1)))
        W = noise(256, 1024, seed) * profile
        fit = fit_edge(W)
        top = np.mean([svdvals(noise(256, 1024, 100 + i) * profile)[0] for i in range(4)])
        assert not fit.gof.accepted
        assert fit.model_used == "free"
        assert fit.n_spikes <= 1
        assert fit.n_spikes_whitened == 0
        assert (fit.edge / top) ** 2 == pytest.approx(1, abs=0.05)
        assert any("Marchenko-Pastur rejected" in words for words in fit.warnings)
        whitened = fit_edge(W, model="whitened")
        exact = mpcore._native.profile_edge(profile[:, 0] ** 2, np.ones(1024))
        assert (whitened.edge / exact) ** 2 == pytest.approx(1, abs=0.02)
        assert whitened.model_used == "whitened"


def test_an_nm_mask_keeps_the_law_with_less_variance() -> None:
    W = noise(256, 1024)
    W *= mpcore.nm_mask(np.abs(W), "2:4")
    fit = fit_edge(W)
    assert fit.gof.accepted
    assert fit.n_spikes == 0
    assert fit.edge == pytest.approx(math.sqrt(np.mean(W**2)) * edge_of(256, 1024), rel=5e-3)


def test_zero_rows_and_columns_are_dropped() -> None:
    W = noise(120, 300)
    padded = np.zeros((200, 350))
    padded[::2][:100, :300] = W[:100]
    fit = fit_edge(padded)
    assert (fit.shape, fit.p, fit.n) == ((200, 350), 100, 300)
    assert fit.edge == pytest.approx(fit_edge(W[:100]).edge, rel=1e-12)


def test_an_outlying_entry_is_one_localised_spike() -> None:
    W = noise(100, 300)
    W[3, 5] = 1e6
    fit = fit_edge(W, vectors=True)
    assert fit.n_spikes == 1
    assert fit.spikes[0].participation_left == pytest.approx(1 / 100, rel=0.01)
    assert fit.spikes[0].participation_right == pytest.approx(1 / 300, rel=0.01)
    assert any("heavy-tailed" in words for words in fit.warnings)
    assert fit.edge_ci[1] / fit.edge_ci[0] < 1.05


def test_the_interval_of_the_variance_covers_it() -> None:
    inside = 0
    for seed in range(200):
        low, high = fit_edge(noise(40, 70, seed)).sigma_sq_ci
        inside += low <= 1 <= high
    # Four standard errors of a share of 200 at 95 %.
    assert 0.888 < inside / 200 <= 1


def test_light_tails_narrow_the_interval() -> None:
    signs = np.sign(noise(100, 200))
    fit = fit_edge(signs)
    assert fit.sigma_sq_se < 0.4 * fit_edge(noise(100, 200)).sigma_sq_se


def test_a_matrix_without_noise_is_all_signal() -> None:
    fit = fit_edge(noise(60, 3) @ noise(3, 90))
    assert (fit.n_spikes, fit.edge, fit.sigma_sq) == (3, 0.0, 0.0)
    assert "no noise bulk: only 3 of 60" in fit.warnings[0]
    with pytest.raises(ValueError, match="sigma_sq: 0 is not positive"):
        fit.pdf(1.0)


# fit_edge: invariance and options


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), power=st.sampled_from([-160.0, -20.0, 3.0, 150.0]))
def test_scale_transpose_and_order_do_not_matter(seed: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    W = noise(60, 110, seed) + signal(60, 110, np.array([1.5, 2.5]), seed)
    base = fit_edge(W)
    factor = 10.0**power
    shuffled = W[rng.permutation(60)][:, rng.permutation(110)]
    for other, scale in ((W * factor, factor), (W.T, 1.0), (shuffled, 1.0)):
        fit = fit_edge(other)
        assert fit.edge == pytest.approx(scale * base.edge, rel=1e-9)
        assert fit.sigma_tw == pytest.approx(scale * base.sigma_tw, rel=1e-9)
        assert fit.n_spikes == base.n_spikes
        assert fit.gof.p_value == pytest.approx(base.gof.p_value, rel=1e-6)


def test_the_edges_are_tied_by_their_formulas() -> None:
    fit = fit_edge(noise(100, 250) + signal(100, 250, np.array([2.0])))
    assert fit.gamma == 0.4
    assert fit.sigma_plus == pytest.approx(math.sqrt(fit.n * fit.lambda_plus))
    assert fit.sigma_minus == pytest.approx(math.sqrt(fit.n * fit.lambda_minus))
    assert fit.sigma_plus_deflated == pytest.approx(math.sqrt(fit.sigma_sq) * edge_of(100, 250, 1))
    assert (fit.lambda_minus, fit.lambda_plus) == pytest.approx(mp.edges(fit.gamma, fit.sigma_sq))
    assert fit.sigma_tw > fit.sigma_plus_deflated
    assert fit.bulk_fraction == 0.99
    assert fit.cdf(fit.ppf(0.3)) == pytest.approx(0.3)
    assert fit.pdf([fit.lambda_plus, 1e9]).tolist() == [0, 0]


def test_the_variance_solves_the_energy_equation() -> None:
    W = noise(80, 200) + signal(80, 200, np.linspace(1.5, 3, 6))
    fit = fit_edge(W, model="mp")
    assert fit.sigma_sq == pytest.approx(reference.energy_variance(svdvals(W), 200, 6), rel=1e-9)


def test_bema_is_the_published_estimator_and_the_paper_has_its_own_parameters() -> None:
    W = noise(60, 150) + signal(60, 150, np.array([2.0, 3.0]))
    values = svdvals(W)
    for option, (trim, level) in (("bema", (0.2, 0.1)), ("paper", (0.25, 0.8))):
        fit = fit_edge(W, **{option: True})
        sigma_sq, threshold = reference.bema(values, 150, trim, mp.tracy_widom_ppf(1 - level))
        assert fit.sigma_sq == pytest.approx(sigma_sq, rel=1e-6)
        assert fit.edge == fit.sigma_tw == pytest.approx(threshold, rel=1e-6)
        assert fit.n_spikes == int((values > threshold).sum())
        assert (fit.model_used, fit.alpha) == (option, level)
    # The paper's quantile is negative: its edge lies inside the bulk.
    assert fit.edge < fit.sigma_plus


def test_the_paper_edges_of_square_and_wide_noise_are_near_two_and_three_halves() -> None:
    for columns, edge in ((256, 2.0), (1024, 1.5)):
        fit = fit_edge(noise(256, columns) / math.sqrt(columns), paper=True)
        assert fit.sigma_plus == pytest.approx(edge, rel=0.01)
        assert fit.gof.ks is not None
        assert fit.gof.ks < 0.03


def test_simulated_intervals_agree_with_the_formulas() -> None:
    W = noise(60, 140)
    plain, simulated = fit_edge(W), fit_edge(W, n_boot=300, seed=1)
    assert simulated.sigma_sq_se == pytest.approx(plain.sigma_sq_se, rel=0.2)
    assert simulated.gof.p_value == pytest.approx(plain.gof.p_value, abs=0.1)
    assert simulated == fit_edge(W, n_boot=300, seed=1, threads=1)
    assert simulated != fit_edge(W, n_boot=300, seed=2)


def test_models_choose_the_edge() -> None:
    W = noise(128, 512) + signal(128, 512, np.array([2.0]))
    assert fit_edge(W, model="mp").edge == fit_edge(W).sigma_plus_deflated
    free = fit_edge(W, model="free")
    assert free.edge == free.sigma_free
    assert free.edge_ci == free.sigma_free_ci
    assert free.n_spikes == 1
    assert free.spikes[0].strength == pytest.approx(2 * edge_of(128, 512), rel=0.05)


def test_the_edge_of_a_profile_is_the_smallest_of_its_curve() -> None:
    rng = np.random.default_rng(3)
    rows, columns = rng.uniform(0.2, 2, 40), rng.uniform(0.2, 2, 90)
    edge = mpcore._native.profile_edge(rows, columns)
    assert edge == pytest.approx(reference.noise_edge(rows, columns), rel=1e-4)


def test_whitening_can_scale_one_side() -> None:
    W = noise(100, 300)
    W[:, :5] *= 8
    assert fit_edge(W).n_spikes == 5
    assert fit_edge(W, whiten="rows").n_spikes_whitened == 5
    assert fit_edge(W, whiten="cols").n_spikes_whitened == 0


def test_a_row_of_few_subnormal_numbers_does_not_break_the_second_opinion() -> None:
    W = noise(200, 400).astype(np.float32)
    W[7] = 0
    W[7, :40] = 1.4e-45  # a root mean square that float32 rounds to zero
    for sides in ("rows", "both"):
        assert (
            fit_edge(W, whiten=sides).n_spikes_whitened
            == fit_edge(np.delete(W, 7, 0), whiten=sides).n_spikes_whitened
            == 0
        )


def test_a_cap_on_spikes_is_kept_and_said() -> None:
    fit = fit_edge(noise(100, 300) + signal(100, 300, np.linspace(2, 3, 6)), k_max=4, model="mp")
    assert any("4 spikes, the most that were allowed" in words for words in fit.warnings)


def test_values_are_kept_on_request() -> None:
    W = noise(20, 30)
    assert fit_edge(W).values is None
    assert fit_edge(W, return_values=True).values == pytest.approx(svdvals(W), rel=1e-9)


def test_lanczos_agrees_with_the_whole_spectrum() -> None:
    W = (noise(500, 900) + signal(500, 900, np.linspace(1.5, 4, 10))).astype(np.float32)
    fast, full = fit_edge(W, method="lanczos"), fit_edge(W, method="exact")
    assert (fast.method_used, full.method_used) == ("lanczos", "exact")
    assert fast.n_spikes == full.n_spikes == 10
    assert fast.edge == pytest.approx(full.edge, rel=1e-4)
    assert [s.value for s in fast.spikes] == pytest.approx([s.value for s in full.spikes], rel=1e-5)
    assert fast.ranks.stable == pytest.approx(full.ranks.stable, rel=1e-5)
    assert fast == fit_edge(W, method="lanczos", threads=1)


def test_lanczos_that_cannot_answer_says_so_and_is_exact() -> None:
    profile = noise(400, 700) * np.linspace(0.4, 1.6, 400)[:, None]
    for W, words in ((profile, "Lanczos gave up"), (noise(50, 80), "too few")):
        fit = fit_edge(W, method="lanczos")
        assert fit.method_used == "exact"
        assert words in fit.warnings[0]
        assert fit.edge == fit_edge(W).edge


# EdgeFit


def test_variances_by_row_and_column_are_no_spikes_in_small_matrices() -> None:
    rng = np.random.default_rng(0)
    wrong, lost, kept = 0, 0, 0
    for _ in range(60):
        profile = np.sqrt(np.outer(rng.uniform(0.3, 1.7, 32), rng.uniform(0.3, 1.7, 32)))
        W = rng.standard_normal((32, 32)) * profile
        wrong += fit_edge(W).n_spikes > 0
        # Low-rank structure gives rows and columns other variances too, and stays.
        left, right = (np.linalg.qr(rng.standard_normal((32, 2)))[0] for _ in range(2))
        structure = (left * [50.0, 30.0]) @ right.T
        lost += fit_edge(rng.standard_normal((32, 32)) + structure).n_spikes < 2
        found = fit_edge(W + structure)
        kept += found.n_spikes == 2
        assert found.n_spikes_ci[0] <= found.n_spikes <= found.n_spikes_ci[1]
    # 7 % in 300 draws, 55 % by the law of one variance; 10 % and 50 % with the structure.
    assert wrong <= 10
    assert lost == 0
    assert kept >= 48


def test_a_fit_survives_json() -> None:
    for fit in (
        fit_edge(noise(40, 90) + signal(40, 90, np.array([2.0])), return_values=True, vectors=True),
        fit_edge(noise(400, 500), method="lanczos"),
    ):
        assert EdgeFit.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit
        assert EdgeFit.from_json(fit.to_json()) == fit


def test_shrinking_beats_truncation() -> None:
    S = signal(200, 500, np.linspace(0.8, 2, 8))
    W = noise(200, 500) + S
    fit = fit_edge(W)
    U, s, Vt, _ = svd(W, fit.n_spikes)
    error = np.linalg.norm(fit.shrink(W) - S)
    assert error < 0.97 * np.linalg.norm((U * s) @ Vt - S)
    assert fit.shrink(W.astype(np.float32)).dtype == np.float32
    assert not fit_edge(noise(50, 60)).shrink(noise(50, 60)).any()
    with pytest.raises(ValueError, match=r"W: shape \(500, 200\) is not the fitted \(200, 500\)"):
        fit.shrink(W.T)


def test_a_plot_shows_law_edge_and_spikes() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    W = noise(100, 200) + signal(100, 200, np.array([1.2, 9.0]))
    axes = fit_edge(W, return_values=True).plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["eigenvalues", "Marchenko-Pastur", "edge (deflated Marchenko-Pastur), 95 % band", "spikes"]
    assert any("1 more spike" in text.get_text() for text in axes.texts)
    assert "100 x 200" in axes.get_title(loc="left")
    given = pyplot.figure().add_subplot()
    lowrank = fit_edge(noise(30, 2) @ noise(2, 40), return_values=True)
    assert lowrank.plot(given, title="low rank") is given
    pyplot.close("all")
    with pytest.raises(ValueError, match="return_values=True"):
        fit_edge(W).plot()


# what is refused


@pytest.mark.parametrize(
    ("W", "error", "message"),
    [
        (np.full((8, 8), np.nan), ValueError, r"W: entry \(0, 0\) is nan"),
        (np.diag([np.inf] * 8), ValueError, r"W: entry \(0, 0\) is inf"),
        (np.ones(8), ValueError, "W: shape .* wanted 2"),
        (np.ones((2, 4, 4)), ValueError, "W: shape .* wanted 2"),
        (np.ones((0, 4)), ValueError, "W: shape .* is empty"),
        (np.ones((8, 8), int), TypeError, "W: dtype int64"),
        (np.array([["a"]]), TypeError, "W: dtype <U1"),
        (np.zeros((8, 9)), ValueError, "W: all entries of the 8 x 9 matrix are zero"),
        (np.ones((1, 9)), ValueError, "W: 1 x 9 with .* wanted at least 2 x 2"),
    ],
)
def test_bad_matrices_are_refused(W: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit_edge(W)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fast"}, "method: 'fast' is not one of"),
        ({"model": "gauss"}, "model: 'gauss' is not one of"),
        ({"whiten": "all"}, "whiten: 'all' is not one of"),
        ({"alpha": 0.0}, "alpha: 0 is not in"),
        ({"alpha": 0.7, "method": "lanczos"}, "alpha: 0.7 is not in"),
        ({"n_boot": 10}, "n_boot: 10 is not 0 or at least 100"),
        ({"n_boot": -1}, "n_boot: -1 is not an integer >= 0"),
        ({"k_max": 2.5}, "k_max: 2.5 is not an integer >= 0"),
        ({"seed": -1}, "seed: -1 is not an integer >= 0"),
        ({"k_max": 10**30}, "k_max: 10+ is not an integer between 0 and 18446744073709551615"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is not an integer between 0 and 18446744073709551615"),
        ({"threads": 0}, "threads: 0 is not an integer between 1 and 1024"),
        ({"threads": 10**9}, "threads: 1000000000 is not an integer between 1 and 1024"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_edge(noise(400, 500), **options)


def test_a_level_that_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="alpha: 'x' is not a number"):
        fit_edge(noise(4, 5), alpha="x")  # type: ignore[arg-type]


# fit_edges


def test_a_mapping_is_fitted_in_its_order_with_reasons_for_the_rest() -> None:
    source = {
        "small": noise(20, 30),
        "bias": np.zeros(7),
        "conv": noise(24, 27).reshape(24, 3, 3, 3),
        "large": noise(60, 90),
        "count": np.ones((3, 3), int),
        "zeros": np.zeros((4, 4)),
    }
    report = fit_edges(source, threads=2)
    assert list(report) == ["small", "conv", "large"]
    assert list(report.skipped) == ["bias", "count", "zeros"]
    assert "1 dimension" in report.skipped["bias"]
    assert "dtype int64" in report.skipped["count"]
    assert "are zero" in report.skipped["zeros"]
    assert report["conv"] == fit_edge(source["conv"].reshape(24, 27))
    assert report == fit_edges(source, threads=1)


def test_a_report_survives_json_and_makes_rows() -> None:
    report = fit_edges({"a": noise(20, 30), "b": noise(30, 20), "c": np.ones(3)}, return_values=True)
    again = SpectraReport.from_json(report.to_json())
    assert again == report
    rows = report.rows()
    assert [row["name"] for row in rows] == ["a", "b"]
    assert rows[0]["edge_ci_low"] < rows[0]["edge"] < rows[0]["edge_ci_high"]
    assert all(not isinstance(value, (dict, list)) or key == "shape" for key, value in rows[0].items())


def test_a_checkpoint_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = {"fc.weight": noise(20, 30).astype(np.float32), "fc.bias": np.zeros(20, np.float32)}
    save_tensors(tmp_path / "model.safetensors", tensors)
    report = fit_edges(tmp_path / "model.safetensors")
    assert report["fc.weight"] == fit_edge(tensors["fc.weight"])
    assert list(report.skipped) == ["fc.bias"]


def test_a_module_gives_its_matrices_and_convolutions_by_module_name() -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.Flatten(), torch.nn.Linear(64, 32)
    )
    report = fit_edges(model)
    assert list(report) == ["0", "3"]
    assert report["0"].shape == (16, 27)


def test_progress_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    fit_edges({"a": noise(20, 30)}, progress=True)
    captured = capsys.readouterr()
    assert "spectra" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ([1, 2], {}, TypeError, "source: list is not a mapping"),
        ({}, {"engine": "dask"}, ValueError, "engine: 'dask' is not None or 'ray'"),
        ({}, {"threads": 0}, ValueError, "threads: 0 is not at least 1"),
        ({}, {"model": "gauss"}, ValueError, "model: 'gauss'"),
        ({}, {"colour": 1}, TypeError, "colour"),
    ],
)
def test_fit_edges_refuses(source: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit_edges(source, **options)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install mpcore\[scale\]"):
        fit_edges({"a": noise(8, 9)}, engine="ray")


def test_a_masked_array_is_refused_rather_than_read_without_its_mask() -> None:
    masked = np.ma.masked_greater(np.random.default_rng(0).standard_normal((8, 8)), 1.0)
    for routine in (mpcore.svdvals, mpcore.fit_edge, lambda W: mpcore.nm_mask(W, "2:4")):
        with pytest.raises(TypeError, match=r"a masked array, whose mask would be lost; pass \.filled\(0\)"):
            routine(masked)
