"""What every example does with its figures: one table for people, one JSON file for machines."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
from rich.console import Console
from rich.table import Table

import mpcore


def machine() -> dict[str, Any]:
    """Where figures come from: processor, threads and versions."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "mpcore": mpcore.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
    }


def print_table(title: str, rows: list[dict[str, Any]], *, caption: str = "") -> None:
    """Rows of equal keys; the keys become the headings, underscores become spaces."""
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for heading, value in rows[0].items():
        table.add_column(heading.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 140).print(table)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document as a whole or not at all, and say where."""
    from mpcore.records import atomic

    with atomic(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    Console(stderr=True).print(f"figures written to {path}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"
    if isinstance(value, (tuple, list)):
        return " to ".join(_text(entry) for entry in value)
    return str(value)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
