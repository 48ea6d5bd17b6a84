"""The Marchenko-Pastur and Tracy-Widom laws, and spikes under noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcore import mp, reference

gammas = st.one_of(st.floats(1e-3, 1.0), st.just(1.0))
variances = st.floats(1e-6, 1e6)


@given(gamma=gammas, sigma_sq=variances, place=st.floats(-0.5, 1.5))
def test_density_and_distribution_equal_the_textbook_formula_and_its_integral(
    gamma: float, sigma_sq: float, place: float
) -> None:
    low, high = mp.edges(gamma, sigma_sq)
    x = low + place * (high - low)
    if abs(x) > 1e-290:  # not where products of the formula leave the normal range
        assert mp.pdf(x, gamma, sigma_sq) == pytest.approx(reference.mp_pdf(np.float64(x), gamma, sigma_sq), rel=1e-6)
    # Near gamma = 1 the trapezoid meets the steep lower edge with steps of pi / 20000.
    assert mp.cdf(x, gamma, sigma_sq) == pytest.approx(reference.mp_cdf(x, gamma, sigma_sq), abs=2e-4)
    if gamma < 0.9:
        assert mp.cdf(x, gamma, sigma_sq) == pytest.approx(reference.mp_cdf(x, gamma, sigma_sq), abs=1e-7)


@given(gamma=gammas, sigma_sq=variances, q=st.floats(0, 1))
def test_quantiles_invert_the_distribution(gamma: float, sigma_sq: float, q: float) -> None:
    assert mp.cdf(mp.ppf(q, gamma, sigma_sq), gamma, sigma_sq) == pytest.approx(q, abs=1e-11 / gamma**0.5)


def test_quantiles_equal_those_of_the_slow_twin() -> None:
    for gamma, q in ((0.1, 0.01), (0.5, 0.5), (0.9, 0.99)):
        assert mp.ppf(q, gamma, 3.0) == pytest.approx(reference.mp_ppf(q, gamma, 3.0), rel=1e-7)


@given(gamma=gammas, sigma_sq=variances)
def test_the_law_is_exact_at_its_edges_and_zero_outside(gamma: float, sigma_sq: float) -> None:
    low, high = mp.edges(gamma, sigma_sq)
    below, above = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    assert mp.cdf([below, low, high, above], gamma, sigma_sq).tolist() == [0, 0, 1, 1]
    assert mp.pdf([below, high, above], gamma, sigma_sq).tolist() == [0, 0, 0]
    assert mp.pdf(low, gamma, sigma_sq) == (np.inf if low == 0 else 0)
    assert mp.ppf([0, 1], gamma, sigma_sq).tolist() == [low, high]
    assert high == pytest.approx(sigma_sq * (1 + gamma**0.5) ** 2, rel=1e-15)


@given(gamma=st.floats(0.01, 1), sigma_sq=st.floats(0.01, 100), x=st.floats(0.001, 4))
def test_the_variance_is_a_scale(gamma: float, sigma_sq: float, x: float) -> None:
    assert mp.cdf(sigma_sq * x, gamma, sigma_sq) == pytest.approx(mp.cdf(x, gamma), abs=1e-9)
    assert mp.pdf(sigma_sq * x, gamma, sigma_sq) * sigma_sq == pytest.approx(mp.pdf(x, gamma), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("gamma", [1e-12, 1e-9, 1e-6, 1e-3, 0.5])
def test_a_small_gamma_keeps_its_digits(gamma: float) -> None:
    # 2/pi times the integral of sin^2 / (1 + gamma - 2 sqrt(gamma) cos), smooth in the angle: Gauss needs 100 nodes.
    nodes, weights = np.polynomial.legendre.leggauss(100)
    root, ends = gamma**0.5, np.linspace(0.05, 3.1, 30)
    angle = (nodes[:, None] + 1) / 2 * ends
    density = np.sin(angle) ** 2 / ((1 - root) ** 2 + 4 * root * np.sin(angle / 2) ** 2)
    exact = 2 / np.pi * (weights @ density) * ends / 2
    x = (1 - root) ** 2 + 4 * root * np.sin(ends / 2) ** 2
    rounding = 4e-16 / root  # that of x over the width of the law
    assert mp.cdf(x, gamma) == pytest.approx(exact, abs=rounding + 1e-14)
    assert mp.ppf(exact, gamma) == pytest.approx(x, abs=root * (30 * rounding + 1e-11))


def test_the_square_law_has_a_closed_form() -> None:
    angle = np.linspace(0, np.pi, 50)
    assert mp.cdf(4 * np.sin(angle / 2) ** 2, 1.0) == pytest.approx((angle + np.sin(angle)) / np.pi, abs=1e-14)


def test_eigenvalues_of_noise_follow_the_law() -> None:
    p, n = 300, 700
    values = np.linalg.svd(np.random.default_rng(1).standard_normal((p, n)), compute_uv=False)[::-1] ** 2 / n
    # Eigenvalues are rigid: each is within a few places of its quantile.
    assert np.abs(mp.cdf(values, p / n) - (np.arange(p) + 0.5) / p).max() < 4 / p


def test_every_argument_broadcasts_and_scalars_give_floats() -> None:
    grid = mp.pdf(np.linspace(0.5, 2, 4)[:, None], np.array([0.2, 0.5, 1.0]), 1.0)
    assert grid.shape == (4, 3)
    assert grid[2, 1] == mp.pdf(1.5, 0.5)
    assert isinstance(mp.cdf(1.0, 0.5), float)
    assert mp.ppf(np.empty(0), 0.5).shape == (0,)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (mp.pdf, (1.0, 0.0), r"gamma: 0 is not in \(0, 1\]"),
        (mp.cdf, (1.0, 1.5), r"gamma: 1.5 is not in \(0, 1\]"),
        (mp.ppf, (0.5, 0.5, -1.0), "sigma_sq: -1 is not positive and finite"),
        (mp.edges, (float("nan"),), "gamma: NaN"),
        (mp.ppf, (1.5, 0.5), r"q: 1.5 is not in \[0, 1\]"),
        (mp.tracy_widom_ppf, (-0.1,), r"q: -0.1 is not in \[0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_refused(function, arguments, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_tracy_widom_quantiles_are_the_published_ones() -> None:
    published = {0.05: -3.180, 0.1: -2.782, 0.5: -1.2686, 0.9: 0.4501, 0.95: 0.9793, 0.99: 2.0234}
    found = mp.tracy_widom_ppf(list(published))
    assert found == pytest.approx(list(published.values()), abs=5e-4)
    assert found[2:] == pytest.approx(list(published.values())[2:], abs=5e-5)


def _determinant(s: float, nodes: int = 100) -> float:
    """F1(s) = det(I - Ai(x + y + s)) on the half line, by Gauss-Legendre quadrature."""
    from scipy.special import airy

    length = 16 + max(0.0, -s)
    x, weights = np.polynomial.legendre.leggauss(nodes)
    x, root = (x + 1) * length / 2, np.sqrt(weights * length / 2)
    return float(np.linalg.det(np.eye(nodes) - root[:, None] * airy(x[:, None] + x + s)[0] * root))


@pytest.mark.parametrize("s", [-6.5, -5.0, -3.3, -1.2, -0.1, 0.0, 0.1, 1.0, 3.0, 5.5])
def test_tracy_widom_equals_its_fredholm_determinant(s: float) -> None:
    assert mp.tracy_widom_cdf(s) == pytest.approx(_determinant(s), abs=1e-11)
    assert mp.tracy_widom_sf(s) == pytest.approx(1 - _determinant(s), abs=1e-11)


def test_tracy_widom_has_its_published_mean_and_variance() -> None:
    s = np.linspace(-12, 16, 20_001)
    density = np.diff(mp.tracy_widom_cdf(s))
    middle = (s[1:] + s[:-1]) / 2
    mean = (density * middle).sum()
    assert mean == pytest.approx(-1.2065335745820, abs=1e-6)
    assert (density * (middle - mean) ** 2).sum() == pytest.approx(1.607781034581, abs=1e-6)


@given(q=st.floats(1e-12, 1 - 1e-12))
def test_tracy_widom_quantiles_invert_the_distribution(q: float) -> None:
    assert mp.tracy_widom_cdf(mp.tracy_widom_ppf(q)) == pytest.approx(q, rel=1e-9)


def test_the_far_tail_of_tracy_widom_keeps_its_digits() -> None:
    # exp(-2/3 s^1.5) / (4 sqrt(pi) s^0.75), the leading term: 5 % off at s = 6, 0.1 % at s = 80.
    s = np.array([6.0, 15.9, 16.1, 40.0, 80.0])
    leading = np.exp(-2 / 3 * s**1.5) / (4 * np.sqrt(np.pi) * s**0.75)
    assert mp.tracy_widom_sf(s) == pytest.approx(leading, rel=0.06)
    assert mp.tracy_widom_sf(80.0) == pytest.approx(leading[-1], rel=2e-3)
    assert mp.tracy_widom_ppf([0.0, 1.0]).tolist() == [-np.inf, np.inf]


@given(gamma=gammas, sigma_sq=st.floats(0.01, 100), factor=st.floats(0.1, 30))
def test_a_spike_shows_up_where_the_formula_says_and_is_read_back(gamma: float, sigma_sq: float, factor: float) -> None:
    theta = factor * (sigma_sq * gamma**0.5) ** 0.5
    sample = mp.spike_to_sample(theta, gamma, sigma_sq)
    assert sample == pytest.approx(reference.spike_to_sample(theta, gamma, sigma_sq), rel=1e-12)
    if factor > 1.01:
        assert mp.sample_to_spike(sample, gamma, sigma_sq) == pytest.approx(theta, rel=1e-6)


def test_below_the_edge_no_strength_can_be_told() -> None:
    assert np.isnan(mp.sample_to_spike(1.4999, 0.25))
    assert mp.spike_to_sample(0.1, 0.25) == pytest.approx(1.5)


def test_a_planted_spike_is_found_where_the_formula_says() -> None:
    rng, p, n = np.random.default_rng(2), 400, 1000
    u, v = rng.standard_normal(p), rng.standard_normal(n)
    theta = 1.7
    W = rng.standard_normal((p, n)) + theta * n**0.5 * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    largest = np.linalg.norm(W, 2) / n**0.5
    # Fluctuations of order n^-1/2.
    assert largest == pytest.approx(mp.spike_to_sample(theta, p / n), abs=3 / n**0.5)
