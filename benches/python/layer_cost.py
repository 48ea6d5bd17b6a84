"""Seconds that one layer costs, by its size: the edge (`inspect`) and a data-free 2:4 mask as a stream prunes it.

    .venv/bin/python benches/python/layer_cost.py [SIZE ...]     e.g. 4096x11008

Normal entries rounded to bfloat16, one core a layer (as `fit_edges` runs them) and all cores; one run each.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tables import heading, machine, row

import mpcore
from mpcore.checkpoint import header_for
from mpcore.stream.run import prune_checkpoint

SIZES = ("768x3072", "1024x1024", "1024x4096", "4096x4096", "4096x11008", "8192x8192", "16384x16384")
SLOW = 8192  # shorter side from which one core is not measured


def main() -> None:
    print(machine() + "\n")
    names = ("layer", "million weights", "edge, 1 core, s", "edge, all cores, s", "method", "prune 2:4, s", "weights/s")
    print(heading(names))
    for size in sys.argv[1:] or SIZES:
        rows, columns = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            print(row(measure(Path(folder), rows, columns)), flush=True)


def measure(folder: Path, rows: int, columns: int) -> list[str]:
    file = folder / "model.safetensors"
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(header_for({"layers.0.up.weight": ("BF16", (rows, columns))}))
        for _ in range(rows):
            out.write((rng.standard_normal(columns, np.float32).view(np.uint32) >> 16).astype(np.uint16).data)
    weight = mpcore.checkpoint.open_weights(file)["layers.0.up.weight"]
    one = seconds(lambda: mpcore.fit_edge(weight, threads=1)) if min(rows, columns) < SLOW else None
    start = time.perf_counter()
    fit = mpcore.fit_edge(weight)
    every = time.perf_counter() - start
    prune = seconds(lambda: prune_checkpoint(file, "2:4", out=folder / "run", progress=False))
    millions = rows * columns / 1e6
    own = "–" if one is None else f"{one:.2f}"
    figures = [own, f"{every:.2f}", fit.method_used, f"{prune:.2f}", f"{millions / prune:.0f} million"]
    return [f"{rows}x{columns}", f"{millions:.1f}", *figures]


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
