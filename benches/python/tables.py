"""What both benches share: the machine in one line, timings that alternate, and a Markdown table."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import mpcore

PAUSE = 0.05  # seconds


def machine() -> str:
    """Processor, logical cores, versions."""
    names = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    versions = f"CPython {platform.python_version()}, numpy {np.__version__}, mpcore {mpcore.__version__}"
    return f"{processor}, {os.cpu_count()} logical cores, {versions}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def alternate(
    functions: Sequence[Callable[[], object]], repeats: int, pause: float = PAUSE
) -> list[tuple[float, float]]:
    """(least, median) seconds of each function after one call to warm up; the runs alternate.

    The threads of a library spin for a while after its call; a pause keeps them off the next function's time.
    """
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            time.sleep(pause)
            began = time.perf_counter()
            function()
            if turn:
                seconds.append(time.perf_counter() - began)
    return [(min(seconds), statistics.median(seconds)) for seconds in times]


def row(cells: Sequence[object]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def heading(names: Sequence[str]) -> str:
    """The first two lines of a Markdown table."""
    return row(names) + "\n" + "|" + " --- |" * len(names)
