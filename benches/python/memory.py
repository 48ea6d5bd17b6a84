"""Inspect, prune and verify a checkpoint larger than the memory they are given.

    .venv/bin/python benches/python/memory.py [--gigabytes 8] [--limit 2] [--layers GLOB] [--keep FOLDER]

Writes a synthetic sharded bfloat16 checkpoint of a decoder (hidden size 4096, widening to 11008, vocabulary 32000) and
runs the three commands in processes of their own, each in ``--limit`` GB of address space (RLIMIT_AS: all that is
mapped, used or not). Prints seconds and the peaks of resident memory; files are read, never mapped, so that the peak
is all there is. ``inspect`` takes the layers of ``--layers`` (seconds grow with their number).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpcore.checkpoint import header_for

HIDDEN, WIDE, WORDS = 4096, 11008, 32000
BLOCK = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}  # fmt: skip
SHARD = 10**9  # bytes


def main() -> int:
    options = parse()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="mpcore-memory-", dir=options.where))
    source, run = folder / "checkpoint", folder / "run"
    try:
        if not source.exists():
            write_checkpoint(source, int(options.gigabytes * 1e9))
        size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
        files = len(list(source.glob("*.safetensors")))
        print(f"{size:.2f} GB in {files} files, bfloat16; limit {options.limit:g} GB, {os.cpu_count()} cores\n")
        print("| command | seconds | peak resident MB | GB/s |")
        print("| --- | --- | --- | --- |")
        shutil.rmtree(run, ignore_errors=True)
        commands = (
            ["inspect", source, "--layers", options.layers, "--json"],
            ["prune", source, "--out", run, "--json"],
            ["verify", run, "--json"],
        )
        for command in commands:
            seconds, peak, status = measure([str(word) for word in command], options.limit * 1e9)
            if status or peak * 1e6 > options.limit * 1e9:
                print(f"{command[0]}: exit status {status}, peak {peak:.0f} MB", file=sys.stderr)
                return 1
            rate = "–" if command[0] == "inspect" else f"{size / seconds:.2f}"
            print(f"| `mpcore {command[0]}` | {seconds:.1f} | {peak:.0f} | {rate} |", flush=True)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--limit", type=float, default=2.0, help="GB that a command may take")
    parser.add_argument("--layers", default="model.layers.0.*", help="what inspect looks at")
    parser.add_argument("--keep", help="a folder for checkpoint and run, kept; an existing checkpoint there is used")
    parser.add_argument("--where", help="where temporary files go")
    return parser.parse_args()


def write_checkpoint(folder: Path, size: int) -> None:
    """Files of about ``SHARD`` bytes until ``size`` is reached, normal entries of scale 0.02, seed 0."""
    folder.mkdir(parents=True)
    shards: list[dict[str, tuple[int, int]]] = [{}]
    room = total = 0
    for name, shape in tensors():
        nbytes = 2 * shape[0] * shape[1]
        if total + nbytes > size:
            break
        if room + nbytes > SHARD:
            shards.append({})
            room = 0
        shards[-1][name] = shape
        room, total = room + nbytes, total + nbytes
    places = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(shard, file)
        with (folder / file).open("wb") as out:
            out.write(header_for({name: ("BF16", shape) for name, shape in shard.items()}))
            for place, shape in enumerate(shard.values()):
                write_normal(out, shape, np.random.default_rng((number, place)))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tensors() -> Iterator[tuple[str, tuple[int, int]]]:
    yield "model.embed_tokens.weight", (WORDS, HIDDEN)
    for layer in range(10**6):
        yield from ((f"model.layers.{layer}.{name}.weight", shape) for name, shape in BLOCK.items())


def write_normal(out, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Rows of normal entries, rounded to bfloat16 towards zero."""
    for start in range(0, shape[0], 512):
        rows = min(512, shape[0] - start)
        values = rng.standard_normal((rows, shape[1]), np.float32) * np.float32(0.02)
        out.write((values.view(np.uint32) >> 16).astype(np.uint16).data)


def measure(arguments: list[str], limit: float) -> tuple[float, float, int]:
    """Seconds, peak resident MB and exit status of ``mpcore ARGUMENTS`` under the limit; stdout is dropped."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (int(limit),) * 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        program = "from mpcore.cli import main; main()"
        os.execv(sys.executable, [sys.executable, "-c", program, *arguments, "--quiet"])
    _, status, usage = os.wait4(child, 0)
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
