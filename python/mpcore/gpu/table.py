"""The table of a speed report: plain rows, and one HTML table."""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import Any

from mpcore.records import SpeedReport

_HEAD = ("layer", "back end", "dense ms", "sparse ms", "gain", "why")


@dataclass(frozen=True)
class SpeedTable(SpeedReport):
    """A :class:`mpcore.records.SpeedReport` that can show itself."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain dictionary for each layer: layer, eligible, backend, dense_s, sparse_s, gain, reason."""
        return [dataclasses.asdict(row) for row in self.layers]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html() + "".join(f"<div>{html.escape(note)}</div>" for note in self.notes)

    def to_html(self) -> str:
        """One self-contained ``<table>``; times are medians in milliseconds, a dash is not measured."""
        caption = html.escape(f"{self.machine}, {self.threads} threads; baseline: {self.baseline}")
        head = "".join(f"<th>{title}</th>" for title in _HEAD)
        body = "".join(f"<tr>{_cells(row)}</tr>\n" for row in self.rows())
        return f"<table>\n<caption>{caption}</caption>\n<tr>{head}</tr>\n{body}</table>\n"


def _cells(row: dict[str, Any]) -> str:
    def figure(value: float | None, scale: float, unit: str = "") -> str:
        return "–" if value is None else f"{value * scale:.3g}{unit}"

    texts = (
        row["layer"],
        row["backend"],
        figure(row["dense_s"], 1e3),
        figure(row["sparse_s"], 1e3),
        figure(row["gain"], 1.0, "×"),
        row["reason"],
    )
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)
