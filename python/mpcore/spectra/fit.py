"""Fit the edge of one matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpcore import _native
from mpcore.arrays import to_count, to_numpy, to_real, to_threads
from mpcore.records import ConvergenceError
from mpcore.spectra import mp
from mpcore.spectra.edgefit import EdgeFit, GoodnessOfFit, Ranks, Spike
from mpcore.spectra.values import all_values, native_matrix, svd

if TYPE_CHECKING:
    from numpy.typing import NDArray

BEMA = (0.2, 0.1)
"""Trim and level of Ke, Ma and Lin."""
PAPER = (0.25, 0.8)
"""Trim and level of the pruning paper."""
LARGE = 4096
"""Shorter side above which ``method="auto"`` tries Lanczos first."""
SMALL = 128
"""Shorter side up to which the values alone may not tell row and column variances from spikes."""
UNLIKE = 3.0
"""Score of :func:`spread_and_score` above which variances of rows or columns do differ."""


def fit_edge(
    W: Any,
    *,
    method: str = "auto",
    model: str = "auto",
    alpha: float = 0.01,
    whiten: str = "none",
    k_max: int | None = None,
    n_boot: int = 0,
    seed: int = 0,
    bema: bool = False,
    paper: bool = False,
    vectors: bool = False,
    return_values: bool = False,
    threads: int | None = None,
) -> EdgeFit:
    """Where the noise of W ends, and what stands out of it.

    The variance of the noise comes from a robust fit of the bulk to Marchenko-Pastur quantiles, then from the bulk's
    energy with what the spikes push out of it taken into account; the number of spikes from the Tracy-Widom law at the
    sizes left without them. A goodness-of-fit test decides: if the law is accepted its edge is returned, otherwise a
    non-parametric one from the square-root end of the bulk, together with a second opinion on the number of spikes
    after whitening (variances that differ by row and column look like spikes; whitened they do not).

    Args:
        W: (rows, cols), float16, bfloat16, float32 or float64, numpy or torch CPU tensor or DLPack, any strides.
        method: "exact" computes all singular values; "lanczos" a block Krylov space that checks itself and falls back
            to exact with a warning (by a second moment, which heavy-tailed entries pass that "exact" rejects);
            "auto" is exact up to 4096 values, Lanczos above.
        model: "mp", "free", "whitened" (edge of noise with the row and column variances of W) or "auto"; this takes the
            edge of such noise too where, of up to 128 values, the variances beside the spikes explain some of them.
        alpha: level of the Tracy-Widom test for spikes, in [1e-15, 1/2].
        whiten: sides that the second opinion scales: "rows", "cols", "both"; "none" asks for one (of both sides) only
            where there are spikes or the law is rejected.
        k_max: most spikes to look for; None: 60 % of the values.
        n_boot: simulated spectra for the p-value and the interval of the variance; 0 uses calibrated formulas,
            otherwise at least 100.
        seed: of simulation and Lanczos.
        bema: variance and threshold exactly as BEMA (Ke, Ma and Lin), ``edge`` being its threshold.
        paper: BEMA with the pruning paper's trim 0.25 and level 0.8.
        vectors: compute the spikes' vectors for ``participation_left`` and ``_right``.
        return_values: keep the singular values in ``values`` (for :meth:`EdgeFit.plot`).
        threads: None uses all cores; the result does not depend on it.

    Raises:
        TypeError: for element types other than floating point.
        ValueError: for NaN, infinity, an empty, one-dimensional or all-zero matrix, for entries whose variance
            float64 cannot hold (beyond 1e154, below 1e-162), or for an argument out of range.

    Example:
        >>> import numpy as np
        >>> fit = fit_edge(np.random.default_rng(0).standard_normal((200, 800)))
        >>> fit.n_spikes, fit.model_used, round(fit.edge / (200**0.5 + 800**0.5), 2)
        (0, 'mp', 1.0)
    """
    _one_of("method", method, ("auto", "exact", "lanczos"))
    _one_of("model", model, ("auto", "mp", "free", "whitened"))
    _one_of("whiten", whiten, ("none", "rows", "cols", "both"))
    for name, value in (("k_max", k_max), ("n_boot", n_boot), ("seed", seed)):
        if value is not None:
            to_count(value, name)
    to_threads(threads)
    to_real(alpha, "alpha")
    matrix = _prepare(to_numpy(W, "W", ndim=2, finite=False), threads)
    rule = PAPER if paper else BEMA if bema else None
    ask = {"alpha": alpha, "k_max": k_max, "n_boot": n_boot, "seed": seed, "threads": threads}
    needs_all = rule is not None or model in ("free", "whitened") or n_boot > 0 or return_values
    found, refusal = _without_values(matrix, method, needs_all, ask)
    values = None
    if found is None:
        values = all_values(matrix.kept, bulk=True, threads=threads)
        found = _with_values(matrix, values, model, whiten, rule, ask)
    if not math.isfinite(found["sigma_sq"]) or (found["sigma_sq"] == 0 and 0 < found["edge"] < 1e-150):
        raise ValueError(f"W: with an edge of {found['edge']:.1e} its variance is outside float64; scale W")
    participation = _participation(matrix, len(found["spikes"]), seed, threads) if vectors else None
    return EdgeFit(
        **_sizes(matrix, found),
        spikes=_spikes(matrix, found, participation),
        alpha=rule[1] if rule else alpha,
        gof=GoodnessOfFit(*found["gof"]),
        ranks=Ranks(*found["ranks"]),
        model_used="paper" if paper else found["model_used"],
        method_used="lanczos" if values is None else "exact",
        warnings=tuple(refusal + found["warnings"]),
        values=tuple(values.tolist()) if return_values and values is not None else None,
        **{name: found[name] for name in _COPIED},
    )


_COPIED = (
    "sigma_sq",
    "sigma_sq_se",
    "sigma_sq_ci",
    "sigma_plus_deflated",
    "sigma_tw",
    "sigma_free",
    "sigma_free_ci",
    "edge",
    "edge_ci",
    "n_spikes",
    "n_spikes_ci",
    "n_spikes_whitened",
    "n_below",
    "bulk_fraction",
)


class _Matrix(NamedTuple):
    """A validated matrix, ``kept`` being what is left of it without all-zero rows and columns."""

    given: NDArray[Any]
    kept: NDArray[Any]
    eps: float

    @property
    def p(self) -> int:
        return int(min(self.kept.shape))

    @property
    def n(self) -> int:
        return int(max(self.kept.shape))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(map(repr, allowed))}")


def _prepare(array: NDArray[Any], threads: int | None) -> _Matrix:
    whole = native_matrix(array)
    eps = float(np.finfo(whole.dtype).eps)
    rows, columns = _native.nonzero_lines(whole, threads)
    shape = f"{array.shape[0]} x {array.shape[1]}"
    if not rows.any():
        raise ValueError(f"W: all entries of the {shape} matrix are zero, there is no spectrum to fit")
    kept = whole if rows.all() and columns.all() else np.ascontiguousarray(whole[np.ix_(rows, columns)])
    if min(kept.shape) < 2:
        raise ValueError(f"W: {shape} with {kept.shape} left after zero rows and columns; wanted at least 2 x 2")
    return _Matrix(array, kept, eps)


def _without_values(
    matrix: _Matrix, method: str, needs_all: bool, ask: dict[str, Any]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The Lanczos fit, or None and why not in words."""
    if method == "exact" or (method == "auto" and (needs_all or matrix.p <= LARGE)):
        return None, []
    if needs_all:
        return None, ["Lanczos cannot answer what was asked (it sees no whole spectrum): exact values were used"]
    kurtosis = _native.kurtosis(matrix.kept, None, ask["threads"])
    arguments = {name: ask[name] for name in ("alpha", "k_max", "seed", "threads")}
    found, reason = _native.lanczos_edge(matrix.kept, kurtosis=kurtosis, **arguments)
    return found, [] if found is not None else [f"Lanczos gave up ({reason}): exact values were used"]


def _with_values(
    matrix: _Matrix,
    values: NDArray[np.float64],
    model: str,
    whiten: str,
    rule: tuple[float, float] | None,
    ask: dict[str, Any],
) -> dict[str, Any]:
    second, profile = None, None
    # The median value gives the noise's deviation whatever the spikes.
    deviation = float(np.median(values)) / math.sqrt(matrix.n * mp.ppf(0.5, matrix.p / matrix.n))
    kurtosis = _native.kurtosis(matrix.kept, deviation, ask["threads"])
    ask = {**ask, "kurtosis": kurtosis, "eps": matrix.eps}
    if model == "whitened" or whiten != "none":
        second = _second_opinion(matrix, "both" if whiten == "none" else whiten, ask)
    if model == "whitened" and second is not None:
        if second.scales is None:
            raise ConvergenceError(f"model='whitened': {second.warnings[0]}")
        profile = _profile_edge(*second.scales, second.sigma_sq)
    kind = "auto" if model == "whitened" else model
    found: dict[str, Any] = _native.find_edge(values, matrix.n, model=kind, bema=rule, profile=profile, **ask)
    doubtful = found["n_spikes"] > 0 or not found["gof"][3]
    if second is None and model == "auto" and rule is None and found["sigma_sq"] > 0 and doubtful:
        second = _second_opinion(matrix, "both", ask)
    small = matrix.p <= SMALL and 0 < found["n_spikes"] < matrix.p - 1 and found["sigma_plus_deflated"] > 0
    if small and model == "auto" and rule is None:
        found = _with_unlike_lines(matrix, values, found, ask)
    found["n_spikes_whitened"] = second.n_spikes if second else None
    found["warnings"] += second.warnings if second else []
    return found


def _with_unlike_lines(
    matrix: _Matrix, values: NDArray[np.float64], found: dict[str, Any], ask: dict[str, Any]
) -> dict[str, Any]:
    """``found``, or the edge of noise with other variances by row and column where that explains some of its spikes.

    The variances are those of what the spikes leave, so that low-rank structure does not pass for a profile; with the
    spikes that the profile's edge leaves they are measured again.
    """
    count = int(found["n_spikes"])
    W = matrix.kept.astype(np.float64) / values[0]
    left, strengths, right, _ = svd(W, count, threads=ask["threads"])
    over = values[0] * (found["sigma_tw"] / found["sigma_plus_deflated"])
    while True:
        edge = _edge_beside(W, left[:, :count], strengths[:count], right[:count], ask["threads"])
        if edge is None:
            return found
        fewer = int(np.count_nonzero(values > edge * over))
        if fewer >= count:
            break
        count = fewer
    if count == found["n_spikes"]:
        return found
    ask = {**ask, "k_max": count}
    again: dict[str, Any] = _native.find_edge(
        values, matrix.n, model="auto", bema=None, profile=float(values[0]) * edge, **ask
    )
    over = again["sigma_tw"] / again["sigma_plus_deflated"]
    low, high = (int(np.count_nonzero(values > end * over)) for end in again["edge_ci"])
    words = "variances differ by row or column: the edge is that of noise with these variances"
    return again | {"n_spikes_ci": (high, low), "warnings": [*found["warnings"], words]}


def _edge_beside(
    W: NDArray[np.float64],
    left: NDArray[np.float64],
    strengths: NDArray[np.float64],
    right: NDArray[np.float64],
    threads: int | None,
) -> float | None:
    """The edge of noise with the row and column variances of W beside its K spikes; None where they do not differ.

    Without the spikes row i has (columns - K)(1 - sum of its squared entries in ``left``) degrees of freedom.
    """
    rest = np.ascontiguousarray(W - (left * strengths) @ right)
    kurtosis = _native.kurtosis(rest, None, threads)[1]
    profile, most = [], 0.0
    for axis, vectors in ((1, left), (0, right.T)):
        samples = W.shape[axis] - len(strengths)
        free = np.maximum(1 - (vectors**2).sum(axis=1), 1e-3)
        variances = (rest**2).sum(axis=axis) / free / samples
        most = max(most, spread_and_score(variances, samples, kurtosis)[1])
        profile.append(_without_sampling_noise(variances, samples))
    if most < UNLIKE:
        return None
    return float(_native.profile_edge(profile[0], profile[1] / profile[1].mean()))


def spread_and_score(variances: NDArray[np.float64], samples: int, kurtosis: float) -> tuple[float, float]:
    """Coefficient of variation of variances, each of them measured on some samples, without what that adds; its score.

    A mean of m squares of entries with excess kurtosis k has relative variance (2 + k) / m; the variance of c such
    means has itself the relative standard error sqrt(2 / (c - 1)), the score's unit.
    """
    measured = float(variances.var(ddof=1) / variances.mean() ** 2)
    expected = max(2 + kurtosis, 0.2) / samples
    score = (measured - expected) / (expected * math.sqrt(2 / (len(variances) - 1)))
    return math.sqrt(max(0.0, measured - expected)), score


class _Second(NamedTuple):
    """Spikes and variance after scaling rows and columns to equal mean square, and these scales."""

    n_spikes: int | None
    sigma_sq: float
    scales: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    warnings: list[str]


def _second_opinion(matrix: _Matrix, sides: str, ask: dict[str, Any]) -> _Second:
    try:
        rows, columns = _native.sinkhorn(matrix.kept, sides, ask["threads"])
    except ConvergenceError as error:
        return _Second(None, math.nan, None, [f"no second opinion: {error}"])
    stored = matrix.kept.dtype
    # A row of a few subnormal numbers has a deviation that float32 takes for zero.
    normal = min(rows.min(), columns.min()) >= np.finfo(stored).tiny
    dtype = stored if normal else np.dtype(np.float64)
    white = matrix.kept / rows.astype(dtype)[:, None]
    white /= columns.astype(dtype)
    white = white.astype(stored, copy=False)
    values = all_values(white, bulk=True, threads=ask["threads"])
    found = _native.find_edge(values, matrix.n, model="auto", bema=None, profile=None, **ask)
    return _Second(found["n_spikes"], found["sigma_sq"], (rows, columns), [])


def _profile_edge(rows: NDArray[np.float64], columns: NDArray[np.float64], sigma_sq: float) -> float:
    """The edge of noise with these deviations by row and by column."""
    unit = float(rows.max())
    on_rows = _without_sampling_noise((rows / unit) ** 2, len(columns))
    on_columns = _without_sampling_noise(columns**2, len(rows))
    return unit * float(_native.profile_edge(on_rows * sigma_sq, on_columns))


def _without_sampling_noise(variances: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    """Variances pulled towards their mean until their spread is what it was before each was measured on few samples.

    A mean of ``samples`` squares has relative variance 2 / samples, which would widen the profile and its edge.
    """
    mean, spread = variances.mean(), variances.var()
    measured = 2 / samples * np.mean(variances**2)
    share = math.sqrt(max(0.0, 1 - measured / spread)) if spread > 0 else 0.0
    pulled: NDArray[np.float64] = mean + share * (variances - mean)
    return pulled


def _sizes(matrix: _Matrix, found: dict[str, Any]) -> dict[str, Any]:
    """Shapes, Marchenko-Pastur edges in both units, soft rank."""
    gamma = matrix.p / matrix.n
    sigma = found["sigma"]
    low, high = (math.sqrt(matrix.n) - math.sqrt(matrix.p), math.sqrt(matrix.n) + math.sqrt(matrix.p))
    unit = (1 - math.sqrt(gamma), 1 + math.sqrt(gamma))
    return {
        "shape": (int(matrix.given.shape[0]), int(matrix.given.shape[1])),
        "p": matrix.p,
        "n": matrix.n,
        "gamma": gamma,
        "lambda_minus": found["sigma_sq"] * unit[0] ** 2,
        "lambda_plus": found["sigma_sq"] * unit[1] ** 2,
        "sigma_minus": sigma * low,
        "sigma_plus": sigma * high,
        "mp_soft_rank": (sigma * high / found["largest"]) ** 2,
    }


def _spikes(
    matrix: _Matrix, found: dict[str, Any], participation: list[tuple[float, float]] | None
) -> tuple[Spike, ...]:
    wide = matrix.kept.shape[0] <= matrix.kept.shape[1]
    spikes = []
    for index, (value, strength, p_value, short, long) in enumerate(found["spikes"]):
        overlaps = (short, long) if wide else (long, short)
        shares = participation[index] if participation else (None, None)
        spikes.append(Spike(value, strength, p_value, *overlaps, *shares))
    return tuple(spikes)


def _participation(matrix: _Matrix, count: int, seed: int, threads: int | None) -> list[tuple[float, float]]:
    if count == 0:
        return []
    found = svd(matrix.kept, count, seed=seed, threads=threads)
    left, right = found.U.astype(np.float64), found.Vt.T.astype(np.float64)
    shares = [1 / (vectors.shape[0] * (vectors**4).sum(axis=0)) for vectors in (left, right)]
    return [(float(a), float(b)) for a, b in zip(*shares, strict=True)]
