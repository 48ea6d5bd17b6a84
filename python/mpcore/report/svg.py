"""SVG by hand: colours come from the page's style sheet by class name, so a chart follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup, escape

Scale = Callable[[float], float]


def linear(domain: tuple[float, float], extent: tuple[float, float]) -> Scale:
    """The affine map from ``domain`` onto ``extent``; a domain of no width maps to the middle."""
    (low, high), (start, stop) = domain, extent
    if high == low:
        return lambda _: (start + stop) / 2
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = 1 - math.floor(math.log10(step))
    return [round(index * step, digits) for index in range(first, last + 1)]


def tag(name: str, content: str = "", /, **attributes: str | float) -> Markup:
    """One element; ``class_`` is class, underscores are dashes, numbers get two decimals, everything is escaped."""
    pairs = (f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{''.join(pairs)}>{escape(content)}</{name}>")


def label(x: float, y: float, content: str, *, class_: str = "tick", anchor: str = "middle") -> Markup:
    """A line of text."""
    return tag("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A filled rectangle."""
    return tag("rect", x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), class_=class_)


def dot(x: float, y: float, radius: float, class_: str) -> Markup:
    """A filled circle."""
    return tag("circle", cx=x, cy=y, r=radius, class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """An open line through points."""
    return tag("polyline", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points), class_=class_)


def polygon(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """A closed, filled shape."""
    return tag("polygon", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points), class_=class_)


def picture(width: int, height: int, parts: Sequence[Markup], title: str) -> Markup:
    """The whole drawing, with ``title`` for readers who cannot see it."""
    body = tag("title", title) + Markup("").join(parts)
    return tag("svg", body, viewBox=f"0 0 {width} {height}", role="img", aria_label=title, class_="chart")


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
