"""How records show themselves: small tables in notebooks, in the page's own colours, and one line elsewhere.

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


def one_line(value: Any) -> str:
    """The fields of a dataclass by name, for ``__repr__``: long sequences by their first entries and their length.

    Example:
        >>> @dataclasses.dataclass
        ... class Order:
        ...     kept: float
        ...     order: tuple[int, ...]
        >>> one_line(Order(1 / 3, tuple(range(100))))
        'Order(kept=0.333333, order=(0, 1, 2, ... 100 in all))'
    """
    return _named(value, [field.name for field in dataclasses.fields(value) if field.name[0] != "_"])


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


_WHOLE, _FIRST = 6, 3
"""A sequence of at most the first number is shown whole in a line, of a longer one as many entries as the second."""


def _named(record: Any, names: Sequence[str], more: str = "") -> str:
    return f"{type(record).__name__}({', '.join(f'{name}={_brief(getattr(record, name))}' for name in names)}{more})"


def _brief(value: Any, inner: bool = False) -> str:
    """A value in a line; ``inner``: inside a sequence, where a record of many fields shows the first alone."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name[0] != "_"]
        return _named(value, names[:1], ", ...") if inner and len(names) > _FIRST else _named(value, names)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else f"{value[:77]!r}..."
    if hasattr(value, "dtype") and len(value.shape) > 0:
        shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        flat_values = value.reshape(-1)[: _WHOLE + 1].tolist()
        return f"{type(value).__name__}({shape}, {dtype}: {_entries(flat_values, math.prod(shape))})"
    if isinstance(value, Mapping):
        shown = [f"{key!r}: {_brief(entry, True)}" for key, entry in list(value.items())[: _WHOLE + 1]]
        return f"{{{_few(shown, len(value))}}}"
    if isinstance(value, (tuple, list)):
        ends = "[]" if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        return f"{ends[0]}{_entries(value[: _WHOLE + 1], len(value))}{ends[1]}"
    text = repr(value)
    return f"<{type(value).__name__}>" if "\n" in text else text


def _entries(values: Sequence[Any], count: int) -> str:
    return _few([_brief(value, True) for value in values], count)


def _few(shown: Sequence[str], count: int) -> str:
    """All of them, or the first and how many there are."""
    return ", ".join(shown) if count <= _WHOLE else f"{', '.join(shown[:_FIRST])}, ... {count} in all"
