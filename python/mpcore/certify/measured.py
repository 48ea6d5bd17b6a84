"""What pruning cannot have changed, from the measured logits of two models.

The certificate compares the logits of two models on a finite sample set T. With eta_s the largest change of any logit
of sample s and Delta_s its margin (top logit minus runner-up of the dense model), the predicted label of s cannot have
changed if Delta_s > 2 eta_s, and the mean cross entropy over T moved by at most 2 mean(eta). Both are theorems about
T, not about other data. They hold for the computed numbers too: rounding is monotone and doubling is exact, so strict
inequality of float64 differences implies it for the exact ones; a tie certifies nothing.

References:
    Berlyand, Bourdais, Owhadi, Shmalo, "Pruning deep neural networks via the Marchenko-Pastur distribution", 2026.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcore import _native
from mpcore.arrays import to_count
from mpcore.certify.arithmetic import Vector
from mpcore.certify.bounds import accuracy_interval, ce_bound, margin_stable
from mpcore.records import Certificate, LayerCertificate, to_numpy

Labels = npt.NDArray[np.uintp]

LARGEST = 1e100
"""Largest size of a logit; beyond it differences and their sums could leave float64. No float32 comes near."""

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_PATH_TOLERANCE = 1e-4  # of the largest logit: noise of repeated forward passes in float32


def certify(
    dense_logits: Any,
    pruned_logits: Any,
    *,
    path: Mapping[str, Any] | None = None,
    labels: Any = None,
    data_sha256: str = "",
    model_sha256: str = "",
    seed: int = 0,
) -> Certificate:
    """Certificate of the dense and the pruned model's logits on the same samples.

    Args:
        dense_logits: (samples, classes) floating point, at least two classes, none beyond 1e100 in size.
        pruned_logits: (samples, classes), the same samples in the same order.
        path: layer name -> (samples,) eta of its removal, measured in the network with all earlier removals done; the
            changes add up to at least the total one. Without it the path is the single step from dense to pruned.
        labels: (samples,) integer classes, for accuracies and cross entropy.
        data_sha256: hash of the samples, kept in the record.
        model_sha256: hash of the pruned weights, kept in the record.
        seed: of the samples' selection, kept in the record.

    Raises:
        ValueError: for shapes or labels that do not fit, NaN, infinity or logits beyond 1e100, or a path that ends
            elsewhere.
        TypeError: for logits that are not floating point or labels that are not integers.

    Example:
        >>> c = certify(np.array([[3.0, 0.0], [1.0, 0.5]]), np.array([[2.5, 0.0], [0.6, 0.7]]), labels=[0, 0])
        >>> c.margin, c.stable, c.unchanged, c.accuracy_interval
        ((3.0, 0.5), 1, 1, (0.5, 1.0))
    """
    if path is not None and not isinstance(path, Mapping):
        raise TypeError(f"path: a {type(path).__name__}, wanted a mapping of layers to changes of the logits")
    dense, pruned = _logits(dense_logits, "dense_logits"), _logits(pruned_logits, "pruned_logits")
    if dense.shape != pruned.shape:
        raise ValueError(f"pruned_logits: shape {pruned.shape} is not that of dense_logits, {dense.shape}")
    predicted, margin = _native.margins(dense)
    final, _ = _native.margins(pruned)
    eta = _native.largest_changes(dense, pruned)
    steps = {name: _changes(values, name, len(dense)) for name, values in (path or {}).items()}
    along = _path_total(steps, eta, float(np.abs(dense).max()))
    stable, unchanged = margin_stable(margin, eta), predicted == final
    _hold(bool((unchanged | ~stable).all()), "a certified label changed")
    truth = None if labels is None else _labels(labels, dense.shape)
    return Certificate(
        samples=len(dense),
        data_sha256=data_sha256,
        model_sha256=model_sha256,
        seed=seed,
        margin=tuple(margin.tolist()),
        eta=tuple(eta.tolist()),
        eta_path=tuple(along.tolist()),
        stable=int(stable.sum()),
        stable_path=int(margin_stable(margin, along).sum()),
        unchanged=int(unchanged.sum()),
        ce_bound=ce_bound(eta),
        layers=tuple(LayerCertificate(name, float(v.max()), float(v.mean())) for name, v in steps.items()),
        **_with_labels(dense, pruned, predicted, final, eta, truth),
    )


def _with_labels(
    dense: Vector, pruned: Vector, predicted: Labels, final: Labels, eta: Vector, truth: Labels | None
) -> dict[str, Any]:
    """The fields of a certificate that need the true labels."""
    if truth is None:
        return dict.fromkeys(("ce_change", "accuracy_dense", "accuracy_pruned", "accuracy_interval", "label_margin"))
    change = _cross_entropy(pruned, truth) - _cross_entropy(dense, truth)
    slack = 1e-12 * (1 + float(np.abs(dense).max()) + float(np.abs(pruned).max()))
    _hold(abs(change) <= ce_bound(eta) + slack, "the cross entropy moved by more than its bound")
    lead = _native.label_margins(dense, truth)
    accuracy, interval = float((final == truth).mean()), accuracy_interval(lead, eta)
    _hold(interval[0] <= accuracy <= interval[1], "the accuracy left its certified interval")
    return {
        "ce_change": change,
        "accuracy_dense": float((predicted == truth).mean()),
        "accuracy_pruned": accuracy,
        "accuracy_interval": interval,
        "label_margin": tuple(lead.tolist()),
    }


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion.

    Args:
        successes: 0..n.
        n: number of trials, at least 1.

    Raises:
        ValueError: unless 0 <= successes <= n and n >= 1.

    Example:
        >>> low, high = wilson(90, 100)
        >>> round(low, 4), round(high, 4)
        (0.8256, 0.9448)

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if n < 1 or not to_count(successes, "successes") <= to_count(n, "n"):
        raise ValueError(f"successes: {successes} of n = {n}, wanted 0 <= successes <= n and n >= 1")
    share, square = successes / n, _Z95**2 / n
    centre = share + square / 2
    spread = math.sqrt(share * (1 - share) * square + square**2 / 4)
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def _logits(value: Any, name: str) -> Vector:
    return _bounded(np.ascontiguousarray(to_numpy(value, name, ndim=2), dtype=np.float64), name)


def _bounded(values: Vector, name: str) -> Vector:
    if (beyond := np.abs(values) > LARGEST).any():
        where = tuple(int(i) for i in np.argwhere(beyond)[0])
        raise ValueError(f"{name}: entry {where} is {values[where]:g}, wanted at most {LARGEST:g} in size")
    return values


def _labels(value: Any, shape: tuple[int, ...]) -> Labels:
    labels = np.asarray(value)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels: dtype {labels.dtype} is not an integer type")
    if labels.shape != shape[:1]:
        raise ValueError(f"labels: shape {labels.shape} is not ({shape[0]},), one label per sample")
    outside = (labels < 0) | (labels >= shape[1])
    if outside.any():
        where = int(outside.argmax())
        raise ValueError(f"labels: entry {where} is {labels[where]}, wanted 0..{shape[1] - 1}")
    return np.ascontiguousarray(labels, dtype=np.uintp)


def _changes(value: Any, name: str, samples: int) -> Vector:
    changes = to_numpy(value, f"path[{name!r}]", ndim=1).astype(np.float64)
    if changes.shape != (samples,) or (changes < 0).any():
        raise ValueError(f"path[{name!r}]: wanted {samples} changes >= 0, one per sample")
    return _bounded(changes, f"path[{name!r}]")


def _path_total(steps: dict[str, Vector], eta: Vector, scale: float) -> Vector:
    """Sum of the steps, rounded up, and never below the total change."""
    if not steps:
        return eta
    total = np.sum(list(steps.values()), axis=0) * (1 + (len(steps) + 1) * np.finfo(np.float64).eps)
    short = eta - total
    worst = int(short.argmax())
    if short[worst] > _PATH_TOLERANCE * scale:
        raise ValueError(
            f"path: the changes of sample {worst} add up to {total[worst]:.6g}, the logits moved by {eta[worst]:.6g}; "
            "a layer is missing or other samples were measured"
        )
    along: Vector = np.maximum(total, eta)
    return along


def _cross_entropy(logits: Vector, labels: Labels) -> float:
    peak = logits.max(axis=1)
    behind = peak - logits[np.arange(len(logits)), labels]  # first, so that what all logits share rounds nothing away
    return float((behind + np.log(np.exp(logits - peak[:, None]).sum(axis=1))).mean())


def _hold(claim: bool, broken: str) -> None:
    """A theorem was violated: a bug here, not a mistake of the caller."""
    if not claim:
        raise AssertionError(f"certificate: {broken}")
