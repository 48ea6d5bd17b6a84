"""Tables and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from mpcore.report.text import number, percent, with_interval

if TYPE_CHECKING:
    from mpcore.records import EvalReport


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, left: int = 1) -> Table:
    """A table; the first ``left`` columns and those of words stand left, numbers right. Cells are shown as they are."""
    cells = [list(row) for row in rows]
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", header_style="bold")
    for index, name in enumerate(columns):
        numeric = index >= left and any(_is_numeric(row[index]) for row in cells)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(cell) for cell in row))
    return made


def counts(checked: Mapping[str, int]) -> str:
    """``12 masks, 3456 groups``."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in checked.items()) or "nothing to check"


def accuracy_table(rows: Iterable[EvalReport], *, title: str | None = None) -> Table:
    """The models of a run side by side, with 95 % intervals."""
    columns = ("model", "top-1 (95 %)", "top-5", "agreement with dense (95 %)", "KL", "NLL", "n")
    cells = [
        (
            row.model,
            with_interval(row.top1, row.top1_ci),
            percent(row.top5),
            with_interval(row.agreement, row.agreement_ci),
            number(row.kl),
            number(row.nll),
            str(row.n),
        )
        for row in rows
    ]
    return table(columns, cells, title=title)


def _is_numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:2] in ("-0", "+0")
