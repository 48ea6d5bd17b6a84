"""How records show themselves in notebooks: small tables in the page's own colours, light or dark.

Reads plain dataclasses and knows none of them; ``COLUMNS`` says which columns of a wide record are shown.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS: dict[str, tuple[str, ...]] = {
    "spectra": ("name", "shape", "edge", "n_spikes", "n_spikes_whitened", "bulk_fraction", "gof_p_value", "model_used"),
    "plan": ("name", "pattern", "shape", "kept_score", "mask_only_error", "relative_error"),
    "inventory": ("name", "kind", "shape", "role", "prunable", "permutable", "reason"),
    "evaluation": ("model", "n", "top1", "top1_ci", "nll", "agreement", "kl"),
}
"""Kind of a record -> columns of its table; others show all."""

LONGEST = 100
"""Rows of a table; of a longer one the rest is counted."""

_CELL = "padding:.15em .6em;text-align:left;border:0"


def of_record(value: Any) -> str:
    """A heading, the scalar fields, and one table for each field that holds records.

    Args:
        value: a dataclass; if it has a method ``rows``, its table is made of those.
    """
    kind = getattr(value, "kind", "") or type(value).__name__
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name[0] != "_"}
    made = value.rows() if callable(getattr(value, "rows", None)) else None
    tables, scalars = [], {}
    for name, entry in fields.items():
        records = list(entry.values()) if isinstance(entry, dict) else entry
        if isinstance(records, (tuple, list)) and records and dataclasses.is_dataclass(records[0]):
            if made is None:
                tables.append(table([flat(record) for record in records], COLUMNS.get(kind), title=name))
        else:
            scalars[name] = entry
    if made is not None:
        tables.append(table(made, COLUMNS.get(kind)))
    return facts(scalars, title=type(value).__name__) + "".join(tables)


def facts(pairs: Mapping[str, Any], *, title: str = "") -> str:
    """Names and values in two columns."""
    rows = "".join(
        f'<tr><td style="{_CELL};opacity:.7">{html.escape(name)}</td><td style="{_CELL}">{_text(value)}</td></tr>'
        for name, value in pairs.items()
    )
    return f"{_heading(title)}<table>{rows}</table>"


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None, *, title: str = "") -> str:
    """One row for each mapping."""
    shown = list(columns or (rows[0] if rows else ()))
    head = "".join(f'<th style="{_CELL}">{html.escape(name)}</th>' for name in shown)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_text(row.get(name))}</td>' for name in shown) + "</tr>"
        for row in rows[:LONGEST]
    )
    more = f"<div>and {len(rows) - LONGEST} more</div>" if len(rows) > LONGEST else ""
    return f"{_heading(title)}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def flat(record: Any) -> dict[str, Any]:
    """The fields of a dataclass as one row, not copied."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _heading(title: str) -> str:
    return f'<div style="font-weight:600;margin:.4em 0 .2em">{html.escape(title)}</div>' if title else ""


def _text(value: Any) -> str:
    """One cell: four digits, short tuples whole, long ones as length and range."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "tolist") and value.ndim > 0:
        value = tuple(value.tolist())
    if isinstance(value, Mapping):
        return (
            f"{len(value)} entries" if len(value) > 8 else html.escape(", ".join(f"{k}: {v}" for k, v in value.items()))
        )
    if isinstance(value, (tuple, list)):
        return _sequence(value)
    return html.escape(str(value))


def _sequence(values: Sequence[Any]) -> str:
    if len(values) <= 6:
        return ", ".join(_text(value) for value in values) or "–"
    if all(isinstance(value, (int, float)) for value in values):
        return f"{len(values)} values, {min(values):.4g} to {max(values):.4g}"
    return f"{len(values)} values"
