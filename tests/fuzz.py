"""Random and hostile inputs through every public numeric function and file reader, against the slow twin.

    .venv/bin/python tests/fuzz.py [--examples 10000] [--only NAME ...]

Run by ``make fuzz``; a few hundred examples are part of the test suite. An input is either refused with ValueError,
TypeError or ConvergenceError, or the result agrees with reference.py. A panic of the extension is none of these.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz_files import READERS, attempt, seeds
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import mpcore
from mpcore import mp, reference
from mpcore.certify import certify
from mpcore.compensate import admm, lstsq, output_error, sparsegpt
from mpcore.masks import check_mask, nm_mask, quadratic_mask, transposable_mask
from mpcore.pattern import Pattern
from mpcore.permute import optimize_permutation
from mpcore.sparse import nm_linear, pack

Array = np.ndarray[Any, Any]
DTYPES = (np.float16, np.float32, np.float64)
KINDS = ("normal", "ties", "zero", "wide", "tiny", "huge", "nan", "infinite", "integer", "empty")
PATTERNS = ("1:2", "2:4", "1:4", "3:4", "2:5", "4:8", "1:8", "7:8", "8:16")

kinds = st.sampled_from(KINDS)
patterns = st.sampled_from(PATTERNS)
sides = st.integers(1, 24)


def array(number: int, kind: str, shape: tuple[int, ...]) -> Array:
    """An array of a random type and layout; every kind but "normal", "ties", "zero" and "wide" may be refused."""
    rng = np.random.default_rng(number)
    values = rng.standard_normal(shape)
    if kind == "ties":
        values = np.rint(values)
    elif kind == "zero":
        values = values * (rng.random(shape) < 0.2) * -0.0
    elif kind == "wide":
        values = values * 10.0 ** rng.integers(-4, 4, shape)
    elif kind in ("tiny", "huge"):
        values = values * (1e-300 if kind == "tiny" else 1e300)
    elif kind in ("nan", "infinite") and values.size:
        values.flat[rng.integers(values.size)] = np.nan if kind == "nan" else rng.choice([-np.inf, np.inf])
    elif kind == "empty":
        values = values[:0]
    with np.errstate(over="ignore"):
        values = values.astype(np.int32 if kind == "integer" else rng.choice(DTYPES))
    layout = rng.integers(4)
    if layout == 1:
        return np.asfortranarray(values)
    if layout == 2:
        return values[::-1]
    return np.repeat(values, 2, axis=-1)[..., ::2] if layout == 3 and values.size else values


def plain(values: Array) -> bool:
    """Whether a function has no ground to refuse these values."""
    return values.dtype.kind == "f" and values.size > 0 and bool(np.isfinite(values).all())


def columns_for(pattern: str, number: int) -> int:
    """Mostly a multiple of M."""
    group = Pattern(pattern).group
    return group * (1 + number % 3) + (1 if number % 11 == 0 else 0)


def gram_of(number: int, kind: str, columns: int) -> Array:
    inputs = array(number + 1, kind if kind in ("nan", "zero", "wide") else "normal", (3 * columns, columns))
    return np.asarray(inputs, np.float64).T @ np.asarray(inputs, np.float64) / len(inputs)


@given(seeds, kinds, patterns, sides)
def masks(number: int, kind: str, pattern: str, rows: int) -> None:
    columns, wanted = columns_for(pattern, number), Pattern(pattern)
    score = array(number, kind, (rows, columns))
    fits = columns % wanted.group == 0
    mask = attempt(plain(score) and fits, nm_mask, score, pattern)
    if mask is not None:
        assert np.array_equal(mask, reference.nm_mask(score.astype(np.float64), wanted.keep, wanted.group))
        attempt(True, check_mask, mask, pattern)
        flipped = ~mask
        attempt(wanted.keep * 2 >= wanted.group, check_mask, flipped, pattern)


@given(seeds, kinds, st.sampled_from(("1:2", "2:4", "1:4", "2:5", "4:8")), st.integers(1, 6))
def quadratic_masks(number: int, kind: str, pattern: str, rows: int) -> None:
    columns, wanted = columns_for(pattern, number), Pattern(pattern)
    W = array(number, kind, (rows, columns))
    groups = max(1, columns // wanted.group)
    roots = np.random.default_rng(number).standard_normal((groups, wanted.group, wanted.group))
    gram = roots @ roots.transpose(0, 2, 1)
    fits = columns % wanted.group == 0
    moderate = plain(W) and kind not in ("tiny", "huge")
    mask = attempt(moderate and fits, quadratic_mask, W, gram, pattern)
    if mask is not None and moderate:
        exact = W.astype(np.float64)
        best = reference.quadratic_mask(exact, gram, wanted.keep, wanted.group)
        ours, theirs = (
            reference.quadratic_cost(exact, gram, kept, None, 0.0, wanted.keep).sum() for kept in (mask, best)
        )
        assert ours <= theirs * (1 + 1e-5) + 1e-30


@given(seeds, kinds, st.sampled_from(("1:2", "2:4", "1:4", "3:4")))
def transposable_masks(number: int, kind: str, pattern: str) -> None:
    wanted = Pattern(pattern)
    size = wanted.group + (number % 7 == 0)
    score = array(number, kind, (size, wanted.group))
    moderate = plain(score) and kind not in ("tiny", "huge")
    mask = attempt(moderate and score.shape[0] == wanted.group, transposable_mask, score, pattern)
    if mask is not None:
        assert (mask.sum(axis=0) == wanted.keep).all()
        assert (mask.sum(axis=1) == wanted.keep).all()
        if moderate:
            best = reference.transposable_value(score.astype(np.float64), wanted.keep)
            assert score[mask].astype(np.float64).sum() >= best - 1e-6 * np.abs(score.astype(np.float64)).sum()


@given(seeds, kinds, st.sampled_from(("1:2", "2:4", "1:4")), st.integers(1, 9))
def permutations(number: int, kind: str, pattern: str, rows: int) -> None:
    columns, wanted = columns_for(pattern, number), Pattern(pattern)
    score = array(number, kind, (rows, columns))
    score = np.abs(score) if number % 5 else score
    valid = plain(score) and bool((score >= 0).all()) and columns % wanted.group == 0 and kind not in ("tiny", "huge")
    found = attempt(valid, optimize_permutation, score, pattern, max_rounds=3, seed=number, time_limit=1.0)
    if found is not None and valid:
        assert sorted(found.order) == list(range(columns))
        kept = reference.kept_score(score, found.order, wanted.keep, wanted.group)
        same = reference.kept_score(score, np.arange(columns), wanted.keep, wanted.group)
        assert math.isclose(found.kept, kept, rel_tol=1e-6, abs_tol=1e-12)
        assert math.isclose(found.kept_identity, same, rel_tol=1e-6, abs_tol=1e-12)
        assert found.kept >= found.kept_identity * (1 - 1e-9)
        assert found.kept <= found.upper_bound * (1 + 1e-6) + 1e-12


@given(seeds, kinds, st.sampled_from(("1:2", "2:4", "1:4")), st.integers(1, 5), st.floats(0.0, 0.9))
def compensation(number: int, kind: str, pattern: str, rows: int, damping: float) -> None:
    columns, wanted = columns_for(pattern, number), Pattern(pattern)
    W, gram = array(number, kind, (rows, columns)), gram_of(number, kind, columns)
    fits = columns % wanted.group == 0
    good = plain(W) and W.dtype != np.float16 and kind in ("normal", "ties", "zero") and fits and damping > 1e-3
    for solve in (admm, sparsegpt):
        found = attempt(good, solve, W, gram, pattern, damping=damping)
        if found is not None:
            assert found.shape == W.shape
            assert found.dtype == np.float32
            assert np.isfinite(found).all() or kind in ("huge", "wide")
            attempt(True, check_mask, found != 0, pattern)
    mask = np.random.default_rng(number).random((rows, columns)) < 0.6
    fitted = attempt(good, lstsq, W, gram, mask, damping=damping, steps=200)
    if fitted is not None and W.shape == mask.shape:
        assert not fitted[~mask].any()
        if good:
            exact = reference.lstsq(W.astype(np.float64), gram, mask, damping)
            assert np.abs(fitted - exact).max() <= 1e-3 * max(1.0, float(np.abs(exact).max()))
            attempt(bool(np.abs(W).max() > 0), output_error, W, fitted, gram)


@given(seeds, kinds, patterns, st.integers(1, 40), st.sampled_from((None, "relu", "gelu")))
def products(number: int, kind: str, pattern: str, tokens: int, activation: Any) -> None:
    columns, wanted = columns_for(pattern, number), Pattern(pattern)
    if columns % wanted.group:
        return
    rng = np.random.default_rng(number)
    rows = int(rng.integers(1, 40))
    W = rng.standard_normal((rows, columns)).astype(np.float32)
    W[~nm_mask(np.abs(W), pattern)] = 0
    X = array(number, kind, (tokens, columns))
    bias = rng.standard_normal(rows).astype(np.float32) if number % 2 else None
    packed = pack(W, pattern)
    assert np.array_equal(packed.unpack(), W)
    good = plain(X) and X.dtype == np.float32 and kind in ("normal", "ties", "zero", "wide")
    found = attempt(good, nm_linear, packed, X, bias=bias, activation=activation)
    if found is not None and good:
        exact = reference.nm_linear(W, X, bias, activation)
        size = np.abs(X).astype(np.float64) @ np.abs(W.T).astype(np.float64) + 1
        assert (np.abs(found - exact) <= 1e-5 * size).all()
    attempt(False, pack, array(number, kind, (3, columns)), pattern)


@given(seeds, kinds, st.integers(1, 12), st.integers(1, 6))
def certificates(number: int, kind: str, samples: int, classes: int) -> None:
    dense = array(number, kind, (samples, classes))
    pruned = array(number + 1, "normal", dense.shape).astype(dense.dtype)
    labels = np.random.default_rng(number).integers(-1 if number % 9 == 0 else 0, classes, len(dense))
    good = plain(dense) and classes > 1 and bool((labels >= 0).all()) and kind not in ("tiny", "huge")
    found = attempt(good and plain(pruned), certify, dense, pruned, labels=labels)
    if found is not None and good:
        a, b = dense.astype(np.float64), pruned.astype(np.float64)
        assert np.allclose(found.margin, reference.margins(a)[1], rtol=1e-6, atol=1e-12)
        assert np.allclose(found.eta, reference.largest_changes(a, b), rtol=1e-6, atol=1e-12)
        assert found.stable <= found.unchanged <= samples
        assert np.allclose(found.label_margin, reference.label_margins(a, labels), rtol=1e-6, atol=1e-12)


@given(seeds, kinds, sides, sides)
def singular_values(number: int, kind: str, rows: int, columns: int) -> None:
    W = array(number, kind, (rows, columns))
    values = attempt(plain(W) and kind not in ("tiny", "huge"), mpcore.svdvals, W)
    if values is not None:
        size = float(np.abs(W).max()) or 1.0
        exact = np.linalg.svd(W.astype(np.float64) / size, compute_uv=False)
        limit = 1e-10 if W.dtype == np.float64 else 1e-6
        assert np.abs(np.asarray(values) / size - exact).max() <= limit * max(exact[0], 1e-300)
    k = number % 5
    found = attempt(False, mpcore.svd, W, k, seed=number)
    if found is not None and values is not None and kind in ("normal", "ties", "zero", "wide"):
        assert np.allclose(found.s, values[:k], rtol=1e-4, atol=1e-5 * max(float(values[0]), 1e-300))


@given(
    seeds,
    kinds,
    sides,
    sides,
    st.sampled_from(("auto", "exact", "lanczos")),
    st.sampled_from(("auto", "mp", "free", "whitened")),
)
def edges(number: int, kind: str, rows: int, columns: int, method: str, model: str) -> None:
    W = array(number, kind, (rows, columns))
    fit = attempt(
        False, mpcore.fit_edge, W, method=method, model=model, alpha=(number % 60) / 100, k_max=number % 3 or None
    )
    if fit is not None:
        assert math.isfinite(fit.edge)
        assert fit.edge >= 0
        assert fit.sigma_sq >= 0
        assert 0 <= fit.n_spikes <= min(W.shape)
        assert 0 <= fit.bulk_fraction <= 1
        json.dumps(fit.to_dict(), allow_nan=False)


wild = st.floats(allow_nan=True, allow_infinity=True) | st.floats(1e-3, 5)


@given(wild, wild, wild)
def laws(x: float, gamma: float, sigma_sq: float) -> None:
    good = math.isfinite(x) and 1e-3 <= gamma <= 1 and 1e-3 <= sigma_sq <= 1e3
    density, below = attempt(good, mp.pdf, x, gamma, sigma_sq), attempt(good, mp.cdf, x, gamma, sigma_sq)
    attempt(False, mp.ppf, x, gamma, sigma_sq)
    sample = attempt(False, mp.spike_to_sample, x, gamma, sigma_sq)
    if good:  # at gamma = 1 the density has a pole at 0
        assert x == 0 or math.isclose(
            density, float(reference.mp_pdf(np.array(x), gamma, sigma_sq)), rel_tol=1e-6, abs_tol=1e-9
        )
        assert abs(below - reference.mp_cdf(x, gamma, sigma_sq, 2001)) < 1e-4
        if sample is not None and 1e-3 < x < 1e3:
            assert math.isclose(sample, reference.spike_to_sample(x, gamma, sigma_sq), rel_tol=1e-9)


NUMBERS = (
    masks, quadratic_masks, transposable_masks, permutations, compensation, products, certificates, singular_values,
    edges, laws,
)  # fmt: skip
PROPERTIES: dict[str, Callable[[], None]] = {function.__name__: function for function in (*NUMBERS, *READERS)}


def run(name: str, examples: int) -> None:
    """Put ``examples`` inputs through one property; raises at the first that breaks it."""
    quiet = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    seed(0)(quiet(PROPERTIES[name]))()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", default=list(PROPERTIES), choices=list(PROPERTIES))
    options = parser.parse_args()
    failed = 0
    print("| inputs of | examples | seconds | broken |\n| --- | --- | --- | --- |")
    for name in options.only:
        start, broken = time.monotonic(), ""
        try:
            run(name, options.examples)
        except BaseException as error:  # a panic is not an Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            broken, failed = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}",
                failed + 1,
            )
            print("\n".join(getattr(error, "__notes__", [])), file=sys.stderr)
        print(
            f"| {name.replace('_', ' ')} | {options.examples} | {time.monotonic() - start:.0f} | {broken} |", flush=True
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
