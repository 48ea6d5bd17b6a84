"""Numbers as people read them, the same on the terminal and on the page."""

from __future__ import annotations

DASH = "–"
"""Stands for what was not measured."""


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, with a true minus sign left to the reader's font; a dash for None.

    Example:
        >>> number(0.012345), number(None)
        ('0.0123', '–')
    """
    return DASH if value is None else f"{value:.{digits}g}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share of one as a percentage.

    Example:
        >>> percent(0.5, 1)
        '50.0 %'
    """
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def interval(bounds: tuple[float, float] | None) -> str:
    """An interval of shares: ``90.9 to 96.0 %``."""
    return DASH if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def with_interval(share: float | None, bounds: tuple[float, float] | None) -> str:
    """``93.87 % (90.9 to 96.0)``."""
    if share is None or bounds is None:
        return percent(share)
    return f"{percent(share)} ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"


def shape(lengths: tuple[int, ...]) -> str:
    """``384×1536``."""
    return "×".join(str(length) for length in lengths)


def count(value: int) -> str:
    """A whole number with thin spaces between thousands: ``1 234 567``."""
    return f"{value:,}".replace(",", "\u2009")
