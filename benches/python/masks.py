"""Masks of a 3072 x 768 layer beside torch: ``.venv/bin/python benches/python/masks.py``, about a minute.

Least and median milliseconds; the runs of all columns alternate. Everything between two NumPy arrays counts: the check
for NaN and the boolean result. Copying the scores is the yardstick, as a mask reads them once.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from tables import alternate, heading, machine, row
from torch.ao.pruning import WeightNormSparsifier

from mpcore import nm_mask, quadratic_mask

ROWS, COLUMNS = 3072, 768
PATTERNS = ((2, 4), (4, 8), (6, 12), (8, 16), (12, 16), (16, 32))


def topk(score: torch.Tensor, keep: int, group: int) -> torch.Tensor:
    groups = score.view(len(score), -1, group)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(-1, groups.topk(keep, -1).indices, True).view_as(score)


def sparsifier(weight: torch.Tensor, keep: int, group: int) -> WeightNormSparsifier:
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data = weight
    found = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, group), zeros_per_block=group - keep)
    found.prepare(model, [{"tensor_fqn": "0.weight"}])
    return found


def top_n(rng: np.random.Generator, repeats: int) -> None:
    score = rng.random((ROWS, COLUMNS), dtype=np.float32)
    tensor = torch.from_numpy(score)
    print(
        heading(["pattern", "copy", "mpcore", "torch topk + scatter", "torch.ao WeightNormSparsifier", "topk / mpcore"])
    )
    for keep, group in PATTERNS:
        ao = sparsifier(tensor.clone(), keep, group)
        if not np.array_equal(nm_mask(score, (keep, group)), topk(tensor, keep, group).numpy()):
            raise SystemExit(f"{keep}:{group}: the masks differ")
        functions = (
            score.copy,
            lambda p=(keep, group): nm_mask(score, p),
            lambda p=(keep, group): topk(tensor, *p),
            ao.step,
        )
        times = alternate(functions, repeats)
        cells = [f"{1e3 * least:.2f} / {1e3 * median:.2f}" for least, median in times]
        print(row([f"{keep}:{group}", *cells, f"{times[2][1] / times[1][1]:.1f}"]), flush=True)


def quadratic(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    print("\n" + heading(["exact quadratic masks", "patterns per group", "seconds", "seconds with a target"]))
    for keep, group, patterns in ((2, 4, 6), (4, 8, 70), (6, 12, 924), (8, 16, 12870)):
        inputs = rng.normal(size=(COLUMNS // group, group, 4 * group))
        gram = inputs @ inputs.transpose(0, 2, 1) / (4 * group)
        target = nm_mask(np.abs(weight), (keep, group))
        seconds = []
        for extra in ({}, {"target": target, "target_weight": 0.1}):
            began = time.perf_counter()
            quadratic_mask(weight, gram, (keep, group), **extra)
            seconds.append(f"{time.perf_counter() - began:.2f}")
        print(row([f"{keep}:{group}", patterns, *seconds]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = np.random.default_rng(chosen.seed)
    print(f"{machine()}, torch {torch.__version__}; {ROWS}x{COLUMNS}, float32, seed {chosen.seed};")
    print(f"milliseconds, least / median of {chosen.repeats} runs\n")
    top_n(rng, chosen.repeats)
    quadratic(rng)


if __name__ == "__main__":
    main()
