"""The charts of the page: accuracy with intervals, margins against logit changes, the training curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from mpcore.records import Certificate, EvalReport
from mpcore.report.svg import dot, label, line, linear, picture, polygon, polyline, rect, ticks
from mpcore.report.text import number, percent

_MOST_POINTS = 240


def accuracy_chart(rows: Sequence[EvalReport]) -> Markup:
    """Top-1 of each model with its 95 % interval, one line each; empty if nothing was labelled."""
    measured = [(row.model, row.top1, row.top1_ci) for row in rows if row.top1 is not None and row.top1_ci is not None]
    if not measured:
        return Markup("")
    low = min(bounds[0] for _, _, bounds in measured)
    high = max(bounds[1] for _, _, bounds in measured)
    pad = max(0.1 * (high - low), 0.002)
    domain = (max(low - pad, 0.0), min(high + pad, 1.0))
    width, left, right, step = 1000, 150, 90, 36
    bottom = 12 + step * len(measured)
    x = linear(domain, (left, width - right))
    parts = []
    for value in ticks(*domain):
        parts += [line(x(value), 8, x(value), bottom, "grid"), label(x(value), bottom + 18, percent(value, 1))]
    parts.append(line(x(measured[0][1]), 8, x(measured[0][1]), bottom, "reference"))
    for index, (model, top1, bounds) in enumerate(measured):
        y, colour = 8 + step * (index + 0.5), f"series-{index % 4}"
        parts += [
            label(left - 14, y + 4, model, class_="name", anchor="end"),
            line(x(bounds[0]), y, x(bounds[1]), y, f"whisker {colour}"),
            line(x(bounds[0]), y - 5, x(bounds[0]), y + 5, f"whisker {colour}"),
            line(x(bounds[1]), y - 5, x(bounds[1]), y + 5, f"whisker {colour}"),
            dot(x(top1), y, 5, f"point {colour}"),
            label(width - right + 14, y + 4, percent(top1), class_="value", anchor="start"),
        ]
    return picture(width, bottom + 28, parts, "Top-1 accuracy of each model with its 95 % interval")


def margin_chart(certificate: Certificate) -> Markup:
    """Margin of each sample against twice its largest logit change; certified samples lie above the diagonal.

    Each axis ends where all but the far few of the samples lie; those are drawn at its end.
    """
    doubled = [2 * eta for eta in certificate.eta]
    width, left, bottom, top = 400, 40, 300, 24
    x_end, y_end = _reach(doubled), _reach(certificate.margin)
    x, y = linear((0, x_end), (left, width - 8)), linear((0, y_end), (bottom, top))
    meet = min(x_end, y_end)
    corner = [(x_end, y_end)] if x_end < y_end else []
    parts = [polygon([(x(a), y(b)) for a, b in [(0, 0), (meet, meet), *corner, (0, y_end)]], "certified")]
    for value in ticks(0, x_end, 5):
        parts += [line(x(value), top, x(value), bottom, "grid"), label(x(value), bottom + 16, number(value))]
    for value in ticks(0, y_end, 5):
        parts += [line(left, y(value), width - 8, y(value), "grid")]
        parts.append(label(left - 7, y(value) + 4, number(value), anchor="end"))
    parts.append(line(x(0), y(0), x(meet), y(meet), "reference"))
    for change, margin in zip(doubled, certificate.margin, strict=True):
        kind = "stable" if margin > change else "open"
        parts.append(dot(x(min(change, x_end)), y(min(margin, y_end)), 3.2, f"sample {kind}"))
    parts.append(label(width - 8, bottom + 34, "2 × largest logit change", class_="axis", anchor="end"))
    parts.append(label(4, 12, "margin of the dense model", class_="axis", anchor="start"))
    return picture(width, bottom + 40, parts, "Margin of each sample against twice its largest logit change")


def training_chart(points: Sequence[tuple[int, float]]) -> Markup:
    """Distillation loss over steps, averaged over short runs of steps; empty without training."""
    if not points:
        return Markup("")
    curve = _averaged(points)
    losses = [loss for _, loss in curve]
    width, height, left = 1000, 240, 46
    low, high = min(losses), max(losses)
    pad = 0.06 * (high - low) or 0.1
    x = linear((0, points[-1][0]), (left, width - 10))
    y = linear((low - pad, high + pad), (height - 34, 10))
    parts = []
    for value in ticks(low - pad, high + pad, 4):
        parts += [
            line(left, y(value), width - 10, y(value), "grid"),
            label(left - 7, y(value) + 4, number(value), anchor="end"),
        ]
    parts += [label(x(value), height - 16, f"{value:g}") for value in ticks(0, points[-1][0], 6)]
    parts.append(polyline([(x(step), y(loss)) for step, loss in curve], "curve"))
    parts.append(label(width - 10, height - 2, "step", class_="axis", anchor="end"))
    return picture(width, height, parts, "Distillation loss over training steps")


def bar(share: float, class_: str = "fill") -> Markup:
    """A thin horizontal bar that fills ``share`` of a table cell."""
    full = 72
    parts = [rect(0, 0, full, 6, "track"), rect(0, 0, full * min(max(share, 0.0), 1.0), 6, class_)]
    return picture(full, 6, parts, percent(share, 1))


def _reach(values: Sequence[float]) -> float:
    """End of an axis that shows all values up to twice the 95th of a hundred."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered or ordered[-1] <= 0:
        return 1.0
    return min(1.05 * ordered[-1], 2 * ordered[int(0.95 * (len(ordered) - 1))]) or ordered[-1]


def _averaged(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means over equal runs of consecutive points, at most ``_MOST_POINTS`` of them."""
    run = -(-len(points) // _MOST_POINTS)
    parts = [points[start : start + run] for start in range(0, len(points), run)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]
