"""How accurate the edges of ``fit_edge`` are, against matrices whose truth is known.

    .venv/bin/python benches/python/edge_accuracy.py               # the whole table, 100 draws (6 at 4096 x 4096)
    .venv/bin/python benches/python/edge_accuracy.py --draws 20 --cases iid row --shapes 512x2048

Every draw is one line in ``target/edge-accuracy.jsonl``; an interrupted run goes on where it stopped, and a new build
of the extension starts anew; ``--draws 0 --large-draws 0`` prints what there is. Strengths of spikes are in units of
sigma (p n)^(1/4), below which none can be seen.

Columns: bias, standard deviation and root mean square error of ``edge`` squared, in percent of the truth; the same bias
for the two estimators in common use, the median (Gavish and Donoho) and BEMA; how often ``n_spikes`` was the truth and
its range of errors; the largest ``n_spikes_whitened``; how often the Marchenko-Pastur law was accepted; how often the
95 % intervals held the truth.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mpcore
from mpcore import _native, mp, reference

Array = np.ndarray[Any, Any]

KINDS = ("iid", "spikes5", "spikes20", "spikes40", "t3", "row", "separable", "outliers", "2:4", "zeros")
SHAPES = ((32, 32), (64, 256), (512, 512), (512, 2048), (4096, 4096))
LABELS = {
    "iid": "normal entries",
    "spikes5": "5 % spikes, 1.6 to 6",
    "spikes20": "20 % spikes, 1.5 + 10/√i",
    "spikes40": "40 % spikes, 1.5 + 10/√i",
    "t3": "Student t(3) entries",
    "row": "row variances U(.3, 1.7)",
    "separable": "row and column variances",
    "outliers": "1 % of columns times 4 to 10",
    "2:4": "2:4 magnitude mask",
    "zeros": "25 % zero rows",
}
PROFILED = ("row", "separable", "outliers")


@dataclass(frozen=True)
class Truth:
    """Edge of the noise bulk (singular value), number of values that lie outside it, variance (None: there is none)."""

    edge: float
    spikes: int
    sigma_sq: float | None


@dataclass(frozen=True)
class Draw:
    """One fit beside its truth; ``edge``, ``median`` and ``bema`` are squared edges over the true one."""

    edge: float
    median: float
    bema: float
    spikes: int
    whitened: int | None
    accepted: bool
    sigma_held: bool | None
    edge_held: bool


class Case:
    """One kind of matrix of one shape; what is random but the same in every draw (variance profiles) is drawn here."""

    def __init__(self, kind: str, rows: int, columns: int, seed: int) -> None:
        self.kind, self.rows, self.columns, self.seed = kind, rows, columns, seed
        rng = np.random.default_rng([seed, rows, columns, 1])
        short = min(rows, columns)
        self.row, self.column = np.ones(rows), np.ones(columns)
        if kind in ("row", "separable"):
            self.row = rng.uniform(0.3, 1.7, rows)
        if kind == "separable":
            self.column = rng.uniform(0.3, 1.7, columns)
        if kind == "outliers":
            self.column[rng.choice(columns, max(1, columns // 100), replace=False)] *= rng.uniform(4, 10) ** 2
        if kind == "zeros":
            self.row[rng.choice(rows, rows // 4, replace=False)] = 0
        share = {"spikes5": 0.05, "spikes20": 0.2, "spikes40": 0.4}.get(kind, 0.0)
        self.count = int(share * short + 0.5)
        self.truth = self._truth()

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"{self.kind} {self.rows}x{self.columns}"

    def _truth(self) -> Truth:
        if self.kind in ("row", "separable"):
            return Truth(reference.noise_edge(self.row, self.column), 0, None)
        rows = int((self.row > 0).sum())
        short, long = min(rows, self.columns), max(rows, self.columns)
        # A column of larger variance is a spike like any other to the singular values.
        spikes = int((self.column > 1).sum()) if self.kind == "outliers" else self.count
        variance = 1.0
        if self.kind == "2:4":
            squares = np.random.default_rng(0).standard_normal((2_000_000, 4)) ** 2
            squares.sort(axis=1)
            variance = float(squares[:, 2:].sum(axis=1).mean() / 4)
        edge = math.sqrt(variance) * (math.sqrt(short - spikes) + math.sqrt(long - spikes))
        return Truth(edge, spikes, None if self.kind in PROFILED else variance)

    def matrix(self, draw: int) -> Array:
        """The matrix of one draw, float32."""
        rng = np.random.default_rng([self.seed, self.rows, self.columns, 2, KINDS.index(self.kind), draw])
        shape = (self.rows, self.columns)
        if self.kind == "t3":
            return (rng.standard_t(3, shape) / math.sqrt(3)).astype(np.float32)
        W = rng.standard_normal(shape, np.float32)
        W *= np.sqrt(self.row[:, None] * self.column).astype(np.float32)
        if self.kind == "2:4":
            W *= mpcore.nm_mask(np.abs(W), "2:4")
        if self.count:
            left = np.linalg.qr(rng.standard_normal((self.rows, self.count)))[0]
            right = np.linalg.qr(rng.standard_normal((self.columns, self.count)))[0]
            unit = (self.rows * self.columns) ** 0.25
            W += ((left * (unit * self._strengths())) @ right.T).astype(np.float32)
        return W

    def _strengths(self) -> Array:
        if self.kind == "spikes5":
            return np.linspace(1.6, 6, self.count)
        return 1.5 + 10 / np.sqrt(np.arange(1, self.count + 1))

    def run(self, draw: int) -> Draw:
        """Fit one draw."""
        fit = mpcore.fit_edge(self.matrix(draw), seed=draw, return_values=True)
        truth, squares = self.truth, np.asarray(fit.values) ** 2 / fit.n
        unit = (1 + math.sqrt(fit.gamma)) ** 2 * fit.n / truth.edge**2
        low, high = fit.sigma_sq_ci
        return Draw(
            edge=(fit.edge / truth.edge) ** 2,
            median=float(np.median(squares)) / mp.ppf(0.5, fit.gamma) * unit,
            bema=bema(squares, fit.gamma) * unit,
            spikes=fit.n_spikes - truth.spikes,
            whitened=fit.n_spikes_whitened,
            accepted=fit.gof.accepted,
            sigma_held=None if truth.sigma_sq is None else low <= truth.sigma_sq <= high,
            edge_held=fit.edge_ci[0] <= truth.edge <= fit.edge_ci[1],
        )


def bema(eigenvalues: Array, gamma: float, trim: float = 0.2) -> float:
    """Variance by least squares of the eigenvalues (descending) on the quantiles of the same ranks (Ke, Ma, Lin)."""
    p = len(eigenvalues)
    ranks = np.arange(math.ceil(trim * p), math.floor((1 - trim) * p) + 1)
    quantiles = mp.ppf(1 - ranks / p, gamma)
    return float((quantiles * eigenvalues[ranks - 1]).sum() / (quantiles**2).sum())


class Log:
    """Draws on disk, one JSON object a line; those of another build of the extension are passed over."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        self.build = hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()[:16]
        self.draws: dict[tuple[str, int], Draw] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            entry = json.loads(line)
            if (entry["build"], entry["seed"]) == (self.build, seed):
                self.draws[entry["case"], entry["draw"]] = Draw(**entry["found"])

    def add(self, case: str, draw: int, found: Draw) -> None:
        """Keep a draw, on disk at once."""
        self.draws[case, draw] = found
        line = {"build": self.build, "seed": self.seed, "case": case, "draw": draw, "found": asdict(found)}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")


def row(case: Case, draws: list[Draw]) -> str:
    """A line of the Markdown table."""

    def percent(name: str) -> Array:
        return 100 * (np.array([getattr(draw, name) for draw in draws]) - 1)

    def share(name: str) -> str:
        held = [getattr(draw, name) for draw in draws]
        return "–" if None in held else f"{100 * np.mean(held):.0f}"

    edge, wrong = percent("edge"), np.array([draw.spikes for draw in draws])
    whitened = [draw.whitened for draw in draws if draw.whitened is not None]
    cells = (
        LABELS[case.kind], f"{case.rows}x{case.columns}", str(case.truth.spikes), str(len(draws)),
        f"{edge.mean():+.2f}", f"{edge.std():.2f}", f"{np.sqrt((edge**2).mean()):.2f}",
        f"{percent('median').mean():+.1f}", f"{percent('bema').mean():+.1f}",
        f"{100 * np.mean(wrong == 0):.0f}", f"{wrong.min():+d} to {wrong.max():+d}",
        str(max(whitened)) if whitened else "–", share("accepted"), share("sigma_held"), share("edge_held"),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "noise", "shape", "K", "draws", "bias %", "sd %", "RMSE %", "median's bias", "BEMA's bias", "K right %",
    "K wrong by", "whitened K at most", "MP accepted %", "σ² held %", "edge held %",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--large-draws", type=int, default=6, help="draws of matrices of more than 2^22 entries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--shapes", nargs="+", default=[f"{p}x{n}" for p, n in SHAPES])
    parser.add_argument("--log", type=Path, default=Path("target/edge-accuracy.jsonl"))
    args = parser.parse_args()
    args.log.parent.mkdir(parents=True, exist_ok=True)
    log = Log(args.log, args.seed)
    cases = [Case(kind, *map(int, shape.split("x")), args.seed) for shape in args.shapes for kind in args.cases]
    for case in cases:
        wanted = args.draws if case.rows * case.columns <= 1 << 22 else args.large_draws
        for draw in range(wanted):
            if (case.name, draw) not in log.draws:
                print(f"\r{case.name}: draw {draw + 1} of {wanted}   ", end="", file=sys.stderr, flush=True)
                log.add(case.name, draw, case.run(draw))
        print(file=sys.stderr)
    versions = f"mpcore {mpcore.__version__}, numpy {np.__version__}, CPython {platform.python_version()}"
    print(f"{versions}, {os.cpu_count()} cores; float32, seed {args.seed}\n")
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for case in cases:
        if found := [draw for (name, _), draw in log.draws.items() if name == case.name]:
            print(row(case, found))


if __name__ == "__main__":
    main()
