"""``mpcore bench``: a quick look at speed, each routine beside a named peer in the same run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from mpcore.cli.options import Json, OutFile, Quiet, Seed
from mpcore.cli.session import Session, session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Duel:
    """One routine of mpcore beside a peer that computes the same thing."""

    name: str
    shape: tuple[int, int]
    peer_name: str
    ours: Callable[[], object]
    peer: Callable[[], object]


def bench(
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs of each, after one to warm up.")] = 5,
    json: Json = False,
    out: OutFile = None,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Time a few routines beside NumPy, runs alternating; ratios of the minimum and of the median time."""
    with session(json=json, quiet=quiet, out=out) as console:
        rows = [_run(duel, repeats, console) for duel in _duels(np.random.default_rng(seed))]
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"
        _show(console, {"machine": machine, "repeats": repeats, "numpy": np.__version__, "rows": rows})


def _duels(rng: np.random.Generator) -> list[Duel]:
    from mpcore import masks, permute, reference, spectra

    weight = rng.normal(size=(384, 1536)).astype(np.float32)
    score = np.abs(rng.normal(size=(3072, 768))).astype(np.float32)
    small = np.abs(rng.normal(size=(64, 64)))
    svd = "numpy.linalg.svd (float64), values alone"

    def numpy_values() -> object:
        return np.linalg.svd(weight.astype(np.float64), compute_uv=False)

    def numpy_search() -> object:
        return reference.optimize_permutation(small, "2:4", max_rounds=20)

    def search() -> object:
        return permute.optimize_permutation(small, "2:4", max_rounds=20, time_limit=60.0)

    return [
        Duel("svdvals", weight.shape, svd, lambda: spectra.svdvals(weight), numpy_values),
        Duel("fit_edge", weight.shape, svd, lambda: spectra.fit_edge(weight), numpy_values),
        Duel(
            "nm_mask 2:4",
            score.shape,
            "numpy.argpartition",
            lambda: masks.nm_mask(score, "2:4"),
            lambda: _argpartition(score),
        ),
        Duel("optimize_permutation 2:4", small.shape, "the NumPy twin in mpcore.reference", search, numpy_search),
    ]


def _argpartition(score: Array) -> Array:
    groups = score.reshape(-1, 4)
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, np.argpartition(groups, 2, axis=1)[:, 2:], True, axis=1)
    return np.reshape(mask, score.shape)


def _run(duel: Duel, repeats: int, console: Session) -> dict[str, Any]:
    console.note(f"{duel.name} {duel.shape[0]}x{duel.shape[1]} beside {duel.peer_name}")
    duel.ours()
    duel.peer()
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(_seconds(duel.ours))
        peer.append(_seconds(duel.peer))
    return {
        "name": duel.name,
        "shape": duel.shape,
        "peer": duel.peer_name,
        "seconds": min(ours),
        "peer_seconds": min(peer),
        "ratio_min": min(peer) / min(ours),
        "ratio_median": statistics.median(peer) / statistics.median(ours),
    }


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _show(console: Session, document: dict[str, Any]) -> None:
    from mpcore.cli.view import table
    from mpcore.report.text import shape

    columns = ("routine", "shape", "ms", "peer ms", "times faster (min)", "(median)", "peer")
    rows = [
        (
            row["name"],
            shape(row["shape"]),
            f"{1e3 * row['seconds']:.2f}",
            f"{1e3 * row['peer_seconds']:.2f}",
            f"{row['ratio_min']:.2f}",
            f"{row['ratio_median']:.2f}",
            row["peer"],
        )
        for row in document["rows"]
    ]
    console.emit(document, table(columns, rows, title=document["machine"]))
