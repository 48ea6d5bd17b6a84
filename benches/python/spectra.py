"""Edges, values and triplets beside other tools: ``.venv/bin/python benches/python/spectra.py``, about five minutes.

Each line times mpcore and its peers in turn on one matrix (float32, normal noise of deviation 0.02 beside spikes) and
gives least / median milliseconds, peer over mpcore (least, median), and how far each is from the truth. An edge's error
is that of its square against sigma^2 (sqrt(p - K) + sqrt(n - K))^2; a value's is the largest against NumPy's float64
values, over the largest value; a triplet's is the larger of its two residuals over the largest value.

WeightWatcher pins older packages; ``pip install --no-deps --target DIR weightwatcher powerlaw mpmath pandas
python-dateutil pytz tzdata six tqdm`` and ``PYTHONPATH=DIR`` bring it in. Without it its line says "not installed".
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from sklearn.utils.extmath import randomized_svd
from tables import PAUSE, alternate, heading, machine, row

import mpcore
from mpcore import mp, reference

Array = np.ndarray[Any, np.dtype[Any]]
SIGMA = 0.02
K = 32
Rounds = Callable[[list[Callable[[], object]]], list[tuple[float, float]]]
"""Functions -> (least, median) seconds of each."""


def noisy(rows: int, columns: int, spikes: int, rng: np.random.Generator) -> Array:
    """Noise beside spikes of strength 1.6 to 6, in critical ones."""
    unit = SIGMA * (rows * columns) ** 0.25
    left = np.linalg.qr(rng.standard_normal((rows, spikes)))[0] if spikes else np.zeros((rows, 0))
    right = np.linalg.qr(rng.standard_normal((columns, spikes)))[0] if spikes else np.zeros((columns, 0))
    noise = rng.standard_normal((rows, columns)) * SIGMA
    return (noise + (left * np.linspace(1.6, 6, spikes) * unit) @ right.T).astype(np.float32)


def weightwatcher() -> Callable[[Array], float] | None:
    """Its singular values and its fit of the density: a Marchenko-Pastur edge (singular value), or None if absent."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import weightwatcher.RMT_Util as rmt
    except ImportError:
        return None
    logging.disable(logging.WARNING)

    def fit(W: Array) -> float:
        p, n = min(W.shape), max(W.shape)
        eigenvalues = scipy.linalg.svdvals(W.astype(np.float64)) ** 2 / n
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            sigma = rmt.fit_density_with_range(eigenvalues, n / p)[0]
        return float(sigma * (1 + math.sqrt(p / n)) * math.sqrt(n))

    return fit


def bema(W: Array) -> float:
    """The reference BEMA, its quantiles by quadrature of the density."""
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    return reference.bema(values, max(W.shape), 0.2, mp.tracy_widom_ppf(0.9))[1]


def line(name: str, peers: dict[str, tuple[Callable[[], object], str]], rounds: Rounds) -> None:
    """One matrix: mpcore first, then each peer."""
    times = rounds([function for function, _ in peers.values()])
    (own_least, own_median), *_ = times
    for (peer, (_, error)), (least, median) in zip(peers.items(), times, strict=True):
        ratio = "" if peer.startswith("mpcore") else f"{least / own_least:.1f} / {median / own_median:.1f}"
        print(row([name, peer, f"{1e3 * least:.1f} / {1e3 * median:.1f}", ratio, error]), flush=True)


def table(title: str, error: str) -> None:
    print(f"\n### {title}\n\n" + heading(["matrix", "what", "ms, least / median", "peer over mpcore", error]))


def edges(rng: np.random.Generator, rounds: Rounds, shapes: list[tuple[int, int]]) -> None:
    table("Edges", "error of the squared edge, %")
    watch = weightwatcher()
    for rows, columns, spikes in [*((rows, columns, rows // 20) for rows, columns in shapes), (768, 3072, 0)]:
        W = noisy(rows, columns, spikes, rng)
        p, n = min(W.shape), max(W.shape)
        truth = SIGMA * (math.sqrt(p - spikes) + math.sqrt(n - spikes))

        def off(edge: float, truth: float = truth) -> str:
            return f"{100 * ((edge / truth) ** 2 - 1):+.2f}"

        peers: dict[str, tuple[Callable[[], object], str]] = {
            "mpcore.fit_edge": (lambda W=W: mpcore.fit_edge(W), off(mpcore.fit_edge(W).edge)),
            "scipy svdvals alone, float32": (lambda W=W: scipy.linalg.svdvals(W), ""),
        }
        if rows < 768:  # half a minute at 2048 x 2048
            peers["BEMA by quadrature"] = (lambda W=W: bema(W), off(bema(W)))
        if watch is not None:
            # Of square matrices it fits the square roots of the eigenvalues, in a unit of its own.
            peers["WeightWatcher's fit"] = (lambda W=W: watch(W), off(watch(W)) if p < n else "")
        line(f"{rows} x {columns}, {spikes} spikes", peers, rounds)
        if watch is None:
            print(row(["", "WeightWatcher's fit", "not installed", "", ""]))


def values(rng: np.random.Generator, rounds: Rounds, shapes: list[tuple[int, int]]) -> None:
    table("Values", "largest error over the largest value")
    for rows, columns in shapes:
        W = noisy(rows, columns, 0, rng)
        wide, tensor = W.astype(np.float64), torch.from_numpy(W)
        exact = np.linalg.svd(wide, compute_uv=False)

        def off(found: Array, exact: Array = exact) -> str:
            return f"{np.abs(np.sort(found)[::-1] - exact).max() / exact[0]:.0e}"

        def gram(W: Array = W) -> Array:
            values: Array = scipy.linalg.eigvalsh(W @ W.T)
            return np.sqrt(values.clip(0))

        functions: dict[str, Callable[[], Array]] = {
            "mpcore.svdvals": lambda W=W: mpcore.svdvals(W),
            "scipy svdvals, float32": lambda W=W: scipy.linalg.svdvals(W),
            "scipy eigvalsh of the Gram, float32": gram,
            "numpy svd, float64": lambda wide=wide: np.linalg.svd(wide, compute_uv=False),
            "torch svdvals, float32": lambda tensor=tensor: torch.linalg.svdvals(tensor).numpy(),
        }
        peers = {name: (function, off(function())) for name, function in functions.items()}
        line(f"{rows} x {columns}", peers, rounds)


def triplets(rng: np.random.Generator, rounds: Rounds, sizes: list[int]) -> None:
    table(f"The {K} largest triplets", "largest residual over the largest value")
    for size in sizes:
        for kind, spikes in (("40 spikes", 40), ("20 spikes", 20)):
            W = noisy(size, size, spikes, rng)
            tensor = torch.from_numpy(W)

            def off(found: tuple[Array, Array, Array], W: Array = W) -> str:
                left, s, right = (np.asarray(part, np.float64) for part in found)
                one = np.linalg.norm(W @ right.T - left * s, axis=0)
                other = np.linalg.norm(left.T @ W - s[:, None] * right, axis=1)
                return f"{max(one.max(), other.max()) / s.max():.0e}"

            def lowrank(tensor: torch.Tensor = tensor) -> tuple[Array, Array, Array]:
                left, s, right = torch.svd_lowrank(tensor, K + 10, niter=4)
                return left.numpy()[:, :K], s.numpy()[:K], right.T.numpy()[:K]

            functions: dict[str, Callable[[], tuple[Array, Array, Array]]] = {
                "mpcore.svd": lambda W=W: mpcore.svd(W, K)[:3],
                "scipy svds, PROPACK": lambda W=W: scipy.sparse.linalg.svds(W, K, solver="propack"),
                "scipy svds, ARPACK": lambda W=W: scipy.sparse.linalg.svds(W, K),
                "scikit-learn randomized_svd": lambda W=W: randomized_svd(W, K, random_state=0),
                "torch svd_lowrank, 4 iterations": lowrank,
            }
            peers = {name: (function, off(function())) for name, function in functions.items()}
            line(f"{size} x {size}, {kind}", peers, rounds)


def lanczos(rng: np.random.Generator, rounds: Rounds, rows: int, columns: int) -> None:
    table("Few products instead of all values", "squared edge against the exact route, %; spikes")
    W = noisy(rows, columns, 40, rng)
    exact, few = (mpcore.fit_edge(W, method=method) for method in ("exact", "lanczos"))
    peers = {
        'mpcore.fit_edge(method="lanczos")': (
            lambda: mpcore.fit_edge(W, method="lanczos"),
            f"{100 * ((few.edge / exact.edge) ** 2 - 1):+.3f}; {few.n_spikes}",
        ),
        'fit_edge(method="exact")': (lambda: mpcore.fit_edge(W, method="exact"), f"0; {exact.n_spikes}"),
    }
    line(f"{rows} x {columns}, 40 spikes", peers, rounds)


def whole_model(rng: np.random.Generator, rounds: Rounds) -> None:
    """The 48 matrices of a ViT-B/16's blocks."""
    shapes = {"qkv": (2304, 768), "proj": (768, 768), "fc1": (3072, 768), "fc2": (768, 3072)}
    model = {f"blocks.{i}.{name}": noisy(*shape, 0, rng) for i in range(12) for name, shape in shapes.items()}
    ((least, median),) = rounds([lambda: mpcore.fit_edges(model)])
    print(f"\nAll 48 matrices of ViT-B/16's shapes by fit_edges: {least:.2f} / {median:.2f} s (least / median)")


def main() -> None:
    sections = ("edges", "values", "triplets", "lanczos", "model")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--pause", type=float, default=PAUSE, help="seconds before each call; 0: beside spinning threads"
    )
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, help="these sections")
    parser.add_argument("--full", action="store_true", help="4096 x 4096 and 4096 x 11008 too, a quarter of an hour")
    chosen = parser.parse_args()
    versions = f"scipy {scipy.__version__}, torch {torch.__version__}"
    print(f"{machine()}, {versions}, seed {chosen.seed}, {chosen.repeats} rounds, {chosen.pause} s before each call")
    rounds = functools.partial(alternate, repeats=chosen.repeats, pause=chosen.pause)
    shapes = [(384, 1536), (768, 3072), (2048, 2048)]
    largest = [(4096, 4096)] if chosen.full else []
    runs: dict[str, Callable[[np.random.Generator], None]] = {
        "edges": lambda rng: edges(rng, rounds, shapes),
        "values": lambda rng: values(rng, rounds, shapes + largest),
        "triplets": lambda rng: triplets(rng, rounds, [2048] + [rows for rows, _ in largest]),
        "lanczos": lambda rng: lanczos(rng, rounds, *((4096, 11008) if chosen.full else (2048, 5504))),
        "model": lambda rng: whole_model(rng, rounds),
    }
    for place, (name, run) in enumerate(runs.items()):
        if name in chosen.only:
            run(np.random.default_rng([chosen.seed, place]))


if __name__ == "__main__":
    main()
