"""At the ends of float64 a bound of `mpcore.certify` may be too large, never too small, and is no NaN."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcore.certify import (
    accuracy_interval,
    ce_bound,
    data_path_budget,
    elastic_net_margin,
    margin_stable,
    mp_edge_effect,
    propagated_effect,
    relu_tail_lipschitz,
    relu_tail_spread,
    restoration_gain,
    row_norm_effect,
)

sizes = st.integers(-300, 300)
extremes = st.just(0.0) | st.builds(lambda sign, size: sign * 10.0**size, st.sampled_from([-1, 1]), sizes)


@given(st.lists(extremes, min_size=1, max_size=6))
def test_a_product_of_extreme_norms_is_the_exact_one_rounded_up(factors):
    exact = math.prod(Fraction(abs(factor)) for factor in factors)
    found = relu_tail_lipschitz([np.array([[float(factor)]]) for factor in factors])
    if exact > Fraction(sys.float_info.max):
        assert found == math.inf
    elif exact < Fraction(sys.float_info.min):
        assert exact <= Fraction(found) * (1 + Fraction(1, 10**12))
        assert (found == 0) == (exact == 0)
    else:
        assert found == pytest.approx(float(exact), rel=1e-14)


@given(st.lists(extremes, min_size=4, max_size=4), st.lists(extremes, min_size=2, max_size=2), extremes)
def test_extreme_effects_are_the_exact_ones_and_below_those_of_the_norms(entries, inputs, lipschitz):
    R, v, L = np.reshape(np.array(entries, float), (2, 2)), np.array([inputs], float), abs(float(lipschitz))
    found = float(propagated_effect(R, v, L)[0])
    terms = [[Fraction(float(a)) * Fraction(float(b)) for a, b in zip(row, v[0], strict=True)] for row in R]
    exact = Fraction(L) * max(abs(sum(row)) for row in terms)
    size = Fraction(L) * max(sum(map(abs, row)) for row in terms)
    assert not math.isnan(found)
    if size < Fraction(sys.float_info.max) / 4:
        assert abs(Fraction(found) - exact) <= size * Fraction(1, 10**14) + Fraction(math.ulp(0.0)) * 2
    norm = math.hypot(*v[0])
    assert found <= float(row_norm_effect(R, [norm], L)[0]) * (1 + 1e-12)


def test_the_effect_of_tiny_weights_on_huge_inputs_by_hand():
    """Squares of 1e-170 underflow, those of 1e170 overflow."""
    R, v = np.full((1, 2), 1e-170), np.full((1, 2), 1e170)
    assert propagated_effect(R, v, 1.0) == pytest.approx(2.0)
    assert row_norm_effect(R, [math.hypot(*v[0])], 1.0) == pytest.approx(2.0)
    assert mp_edge_effect(1e-170, (1, 1), [1e170], 1.0) == pytest.approx(mp_edge_effect(1.0, (1, 1), [1.0], 1.0))
    assert relu_tail_spread([np.array([[1e-200]]), np.array([[1e200], [0.0]])]) == pytest.approx(0.5)
    assert ce_bound([5e-324, 0.0, 0.0, 0.0]) > 0
    assert ce_bound([1e308, 1e308, 0.0, 0.0, 0.0]) == pytest.approx(8e307)


def test_the_largest_of_many_tokens_and_rows_counts_even_where_others_cancel_or_vanish():
    R = np.array([[1e-300, -1e-300], [0.0, 1e-163], [0.0, 0.0]])
    tokens = np.array([[[1.0, 1.0], [0.0, 0.0]], [[1e-10, 1e-10], [0.0, 2e-140]], [[1.0, 0.0], [3.0, 3e-200]]])
    found = propagated_effect(R, tokens, 1e30)
    assert found == pytest.approx([1e-133, 2e-273, 3e-270], rel=1e-14)


def test_infinite_constants_certify_nothing_and_dead_inputs_nothing_lost():
    assert propagated_effect(np.ones((1, 2)), np.array([[1.0, 0.0], [0.0, 0.0]]), math.inf).tolist() == [math.inf, 0.0]
    assert not margin_stable(1e308, math.inf)
    assert accuracy_interval([1.0, -1.0], math.inf) == (0.0, 1.0)
    assert elastic_net_margin(np.ones((1, 2)), math.inf, lambda2=1.0) == -math.inf
    assert elastic_net_margin(np.ones((1, 2)), math.inf, lambda2=1.0, theta=1.0) == 0.0
    assert restoration_gain(np.ones((1, 2)), math.inf, math.inf, lambda2=1.0) == -math.inf


@given(
    st.lists(st.sampled_from([1.0, 3.0, 1e8, 1e16, 1e-8]), min_size=1, max_size=6),
    st.lists(st.sampled_from([1.0, -1.0, 7.0, 1e-300, 1e200]), min_size=6, max_size=6),
    st.randoms(use_true_random=False),
)
def test_terms_that_cancel_are_not_taken_for_nothing(entries, inputs, random):
    row, v = [*entries, *(-entry for entry in entries)], (inputs * 2)[: len(entries)] * 2
    places = random.sample(range(len(row)), len(row))
    row, v = [row[place] for place in places], [v[place] for place in places]
    row[0] += 1.0
    exact = abs(sum(Fraction(r) * Fraction(x) for r, x in zip(row, v, strict=True)))
    found = data_path_budget(np.array([row]), np.array([v]), 1.0)
    assert Fraction(found) / 2 >= exact
