"""Times that can be compared: runs that alternate, medians with their spread, CUDA events on a GPU."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, quartiles, and the number of timed calls."""

    median: float
    low: float
    high: float
    repeats: int


def interleave(
    functions: Sequence[Callable[[], object]],
    *,
    device: torch.device,
    repeats: int = 31,
    seconds: float = 1.0,
    warmup: int = 2,
) -> tuple[Timing, ...]:
    """Time several functions in turns, so that a slow moment of the machine falls on all of them.

    Args:
        functions: what to time; each does the same work in its own way.
        device: CUDA calls are timed by events on the current stream, all others by the clock.
        repeats: rounds; every function runs once a round, in an order that turns round.
        seconds: stop after so many, once there were three rounds.
        warmup: rounds before the first timed one.

    Raises:
        ValueError: for no function or fewer than three rounds.
    """
    if not functions or repeats < 3:
        raise ValueError(f"interleave: {len(functions)} functions, {repeats} repeats; wanted at least 1 and 3")
    for _ in range(warmup):
        for function in functions:
            function()
    measure = _cuda_seconds if device.type == "cuda" else _clock_seconds
    times: list[list[float]] = [[] for _ in functions]
    began = time.perf_counter()
    for turn in range(repeats):
        order = range(len(functions)) if turn % 2 == 0 else reversed(range(len(functions)))
        for index in order:
            times[index].append(measure(functions[index]))
        if turn >= 2 and time.perf_counter() - began > seconds:
            break
    return tuple(_summary(runs) for runs in times)


def machine(device: torch.device) -> str:
    """Name of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _summary(runs: list[float]) -> Timing:
    low, median, high = statistics.quantiles(runs, n=4, method="inclusive")
    return Timing(median, low, high, len(runs))


def _clock_seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _cuda_seconds(function: Callable[[], object]) -> float:
    event: Any = torch.cuda.Event  # torch declares no types for it
    first, last = event(enable_timing=True), event(enable_timing=True)
    first.record()
    function()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1e-3
