"""Sparse layers on this CPU beside the best dense calls: one table of layers, one of whole models.

    python benches/python/execution.py [--full] [--dtype bfloat16] [--isa AVX512_CORE_BF16] [--threads 1 2]

Every row runs its rivals in turns (OpenBLAS afterwards: two teams of threads disturb each other) and gives the ratio
of the medians, and of the minima in brackets; above 1 sparse is faster. Weights are packed beforehand on both sides,
activations inside the time. ``own 31:32`` is the same kernel with next to nothing pruned, so that the sparsity's share
of a gain can be told. Weights are random; speed does not depend on their values. Unset OPENBLAS_CORETYPE, which would
choose other kernels for NumPy. oneDNN chooses its instructions once in a process: ``--isa`` repeats the table in a
second process whose oneDNN stops at that set, which on a CPU with AMX shows the dense rivals of one without.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mpcore
from mpcore._native import instruction_sets
from mpcore.gpu.timing import machine
from mpcore.models.dense_rivals import dense_calls
from mpcore.models.sparse_layers import SparseConv2d, SparseLinear
from mpcore.pattern import Pattern

LINEAR = {  # model: (outputs, inputs) of its layers
    "ViT-B/16": [(768, 768), (2304, 768), (3072, 768), (768, 3072)],
    "ViT-S/14": [(384, 384), (1536, 384), (384, 1536)],
    "MiniLM": [(384, 384), (1536, 384)],
}
CONV = [  # ResNet50: outputs, inputs, kernel, stride, input size
    (64, 64, 3, 1, 56),
    (256, 64, 1, 1, 56),
    (128, 128, 3, 1, 28),
    (512, 128, 1, 1, 28),
    (256, 256, 3, 1, 14),
    (1024, 256, 1, 1, 14),
    (512, 512, 3, 1, 7),
    (512, 512, 3, 2, 14),
]
PATTERNS = ("2:4", "1:4", "4:8", "8:16", "1:8")
CONTROL = "31:32"
KERNELS = instruction_sets()
LIMIT = "ONEDNN_MAX_CPU_ISA"
MODELS = {
    "ViT-S/14": ("vit_small_patch14_dinov2", 224),
    "ViT-B/16": ("vit_base_patch16_224", 224),
    "ResNet50": ("resnet50", 224),
    "EfficientNet-Lite0": ("efficientnet_lite0", 224),
}

Calls = dict[str, Callable[[], object]]


def in_turns(calls: Calls, seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Seconds of every call, taken in turns until ``seconds`` are over."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began, turns = time.perf_counter(), 0
    while calls and (turns < least or time.perf_counter() - began < seconds):
        turns += 1
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def masked(layer: nn.Linear | nn.Conv2d, pattern: str) -> nn.Linear | nn.Conv2d:
    """The layer with all but the largest N of M weights set to zero, along its inputs."""
    with torch.no_grad():
        layer.weight *= torch.from_numpy(mpcore.nm_mask(layer.weight.abs().float().numpy(), pattern, axis=1))
    return layer


def time_layer(layer: nn.Linear | nn.Conv2d, x: torch.Tensor, pattern: str, seconds: float) -> dict[str, Any]:
    """Median and minimum of every rival, in seconds."""
    calls: Calls = {}
    alone: Calls = {}  # after the others: the idle threads of a second team spin, and would take the cores from them
    if isinstance(layer, nn.Linear):
        control = SparseLinear(masked(copy.deepcopy(layer), CONTROL), Pattern(CONTROL))
        calls[f"own {CONTROL}"] = lambda: control(x)
        if x.dtype == torch.float32:
            weight, inputs = layer.weight.detach().numpy(), x.numpy()
            alone["OpenBLAS"] = lambda: inputs @ weight.T
    masked(layer, pattern)
    kind: Any = SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d
    sparse = kind(layer, Pattern(pattern))
    with torch.inference_mode():
        times = in_turns({"sparse": lambda: sparse(x), **dense_calls(layer, x), **calls}, seconds)
        times.update(in_turns(alone, seconds / 4))
    return {name: {"median": statistics.median(runs), "min": min(runs)} for name, runs in times.items()}


def layers(full: bool, dtype: torch.dtype, threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each layer, pattern and number of tokens; convolutions in float32 alone."""
    torch.manual_seed(0)
    tokens = (1, 32, 197, 1576) if full else (1, 197)
    for model, shapes in LINEAR.items():
        for outputs, inputs in shapes if full else shapes[-1:]:
            for count in tokens:
                for pattern in PATTERNS if full or count > 1 else PATTERNS[:2]:
                    layer = nn.Linear(inputs, outputs, dtype=torch.float32)
                    x = torch.randn(count, inputs).to(dtype)
                    times = time_layer(masked(layer, pattern).to(dtype), x, pattern, seconds)
                    yield row(model, f"{outputs}x{inputs} T={count}", pattern, dtype, threads, times)
    for outputs, inputs, kernel, stride, size in CONV if dtype == torch.float32 else ():
        for order in ("NCHW", "channels_last") if full else ("NCHW",):
            for pattern in PATTERNS if full else PATTERNS[:2]:
                layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
                x = torch.randn(1, inputs, size, size)
                x = x.contiguous(memory_format=torch.channels_last) if order == "channels_last" else x
                times = time_layer(layer, x, pattern, seconds)
                shape = f"{outputs}x{inputs} {kernel}x{kernel}/{stride} {size}x{size} {order}"
                yield row("ResNet50", shape, pattern, dtype, threads, times)


def models(full: bool, dtype: torch.dtype, threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each whole model and pattern, the layers chosen by ``accelerate``."""
    import timm

    for name, (identifier, size) in MODELS.items() if full else list(MODELS.items())[::2]:
        for pattern in ("2:4", "1:4"):
            for batch in (1, 8) if full else (1,):
                torch.manual_seed(0)
                options = {"img_size": size} if "vit" in identifier else {}
                model = timm.create_model(identifier, pretrained=False, **options).eval()
                for layer in model.modules():
                    eligible = isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[1] % 4 == 0
                    if eligible and getattr(layer, "groups", 1) == 1:
                        masked(layer, pattern)
                model, x = model.to(dtype), torch.randn(batch, 3, size, size, dtype=dtype)
                fast = mpcore.accelerate(model, x)
                used = sum(entry["backend"] == "cpu" for entry in fast.report.rows())
                calls: Calls = {"sparse": lambda fast=fast, x=x: fast.model(x), "dense": lambda m=model, x=x: m(x)}
                with torch.inference_mode():
                    times = in_turns(calls, 4 * seconds)
                timed = {key: {"median": statistics.median(t), "min": min(t)} for key, t in times.items()}
                shape = f"batch {batch}, {used} of {len(fast.report.rows())} layers sparse"
                yield row(name, shape, pattern, dtype, threads, timed)


def row(
    model: str, shape: str, pattern: str, dtype: torch.dtype, threads: int, times: dict[str, Any]
) -> dict[str, Any]:
    """What the table and the JSON hold."""
    return {
        "model": model,
        "shape": shape,
        "pattern": pattern,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "isa": os.environ.get(LIMIT),
        "seconds": times,
    }


def line(entry: dict[str, Any]) -> str:
    """One line of a Markdown table: milliseconds of the sparse layer, ratios of the median (of the minimum)."""
    times = entry["seconds"]
    sparse = times["sparse"]
    ratios = ", ".join(
        f"{name} {rival['median'] / sparse['median']:.2f} ({rival['min'] / sparse['min']:.2f})"
        for name, rival in times.items()
        if name != "sparse"
    )
    names = (entry["model"], entry["shape"], entry["pattern"], entry["dtype"], str(entry["threads"]))
    return f"| {' | '.join(names)} | {sparse['median'] * 1e3:.3g} | {ratios} |"


def main() -> None:
    """Print the table as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every shape and batch: an hour for each dtype")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and inputs")
    parser.add_argument("--isa", help=f"repeat in a second process with this {LIMIT}, such as AVX512_CORE_BF16")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads; left out, torch's own")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each row")
    parser.add_argument("--only", choices=("layers", "models"), help="one of the two tables")
    parser.add_argument("--json", type=Path, help="write all times to this file")
    arguments = parser.parse_args()
    kinds = {"layers": layers, "models": models}
    dtype = getattr(torch, arguments.dtype)
    rows = []
    print(f"{machine(torch.device('cpu'))}, torch {torch.__version__}, numpy {np.__version__}, {KERNELS[-1]} kernels")
    print(f"oneDNN: {os.environ.get(LIMIT, 'all instructions of this CPU')}\n")
    print("| model | layer | pattern | dtype | threads | sparse ms | rival / sparse: median (min) |")
    print("|---|---|---|---|---|---|---|")
    for threads in arguments.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        settle = torch.randn(512, 512)
        in_turns({"settle": lambda: settle @ settle}, 6.0)  # noqa: B023  until each thread has found a core of its own
        for kind in kinds if arguments.only is None else [arguments.only]:
            for entry in kinds[kind](arguments.full, dtype, threads, arguments.seconds):
                rows.append(entry)
                print(line(entry), flush=True)
    if arguments.isa is not None and LIMIT not in os.environ:
        print(flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.json")
            again = [sys.executable, *sys.argv, "--json", str(path)]
            subprocess.run(again, env={**os.environ, LIMIT: arguments.isa}, check=True)
            rows.extend(json.loads(path.read_text(encoding="utf-8")))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
