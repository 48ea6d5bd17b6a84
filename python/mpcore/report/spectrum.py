"""The Marchenko-Pastur plot of one layer: eigenvalues, the law that fits their bulk, the edge and the spikes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from mpcore.report.svg import Scale, dot, label, line, linear, picture, polyline, rect
from mpcore.report.text import number
from mpcore.spectra import EdgeFit

Values = npt.NDArray[np.float64]

_WIDTH, _HEIGHT, _FLOOR, _TOP, _SIDE = 300, 150, 122, 22, 10


def spectrum_chart(name: str, fit: EdgeFit) -> Markup:
    """Histogram of lambda = sigma^2 / n with the fitted density over it; empty if the values were not kept.

    The density is scaled by the share of values in the bulk, so that its area is comparable with the histogram's. What
    lies beyond the right end of the plot is counted there. A matrix without noise has no law, and its values are drawn
    without one.
    """
    if fit.values is None or len(fit.values) == 0:
        return Markup("")
    eigenvalues = np.asarray(fit.values, dtype=np.float64) ** 2 / fit.n
    low, high = _domain(fit, eigenvalues)
    bins = int(min(48.0, max(12.0, 2 * eigenvalues.size**0.5)))
    heights, edges = np.histogram(eigenvalues, bins=bins, range=(low, high))
    density = heights / (eigenvalues.size * (high - low) / bins)
    at, law = _law(fit, low, high)
    # The density of a square matrix has no bound at 0; the curve leaves through the top instead of flattening the bars.
    highest = min(max(float(law.max(initial=0.0)), float(density.max())), 1.6 * float(density.max()))
    x, y = linear((low, high), (_SIDE, _WIDTH - _SIDE)), linear((0.0, 1.05 * highest), (_FLOOR, _TOP))
    edge = fit.edge**2 / fit.n
    parts = [
        rect(x(a), y(h), x(b) - x(a) - 0.6, _FLOOR - y(h), "spike-bar" if (a + b) / 2 > edge else "bulk-bar")
        for a, b, h in zip(edges[:-1], edges[1:], density, strict=True)
        if h
    ]
    if law.size:
        parts.append(polyline([(x(v), y(min(h, 1.05 * highest))) for v, h in zip(at, law, strict=True)], "law"))
    parts += [line(_SIDE, _FLOOR, _WIDTH - _SIDE, _FLOOR, "base"), line(x(edge), _TOP - 4, x(edge), _FLOOR, "edge")]
    parts += _spike_marks([s.value**2 / fit.n for s in fit.spikes], x, high)
    parts.append(label(x(edge), _FLOOR + 16, f"edge {number(edge)}", class_="tick edge-label"))
    words = "with the Marchenko-Pastur density" if law.size else "without noise: there is no law to draw"
    return picture(_WIDTH, _HEIGHT, parts, f"Eigenvalues of {name} {words}")


def _law(fit: EdgeFit, low: float, high: float) -> tuple[Values, Values]:
    """Points of the fitted density; none without noise."""
    if fit.sigma_sq == 0:
        return np.empty(0), np.empty(0)
    at = np.linspace(max(low, fit.lambda_minus), min(high, fit.lambda_plus), 120)
    return at, np.asarray(fit.pdf(at), dtype=np.float64) * fit.bulk_fraction


def _domain(fit: EdgeFit, eigenvalues: Values) -> tuple[float, float]:
    """From below the bulk to somewhat beyond its edge, so that far spikes do not squeeze it; without a bulk all."""
    if fit.sigma_sq == 0:
        return 0.0, 1.05 * float(eigenvalues.max())
    width = max(fit.lambda_plus - fit.lambda_minus, 1e-12 * fit.lambda_plus)
    low = max(0.0, min(float(eigenvalues.min()), fit.lambda_minus) - 0.08 * width)
    edge = max(fit.lambda_plus, fit.edge**2 / fit.n)
    near = eigenvalues[eigenvalues <= edge + 1.2 * width]
    high = max(edge + 0.3 * width, float(near.max(initial=0.0)) + 0.05 * width)
    return low, high


def _spike_marks(spikes: Sequence[float], x: Scale, high: float) -> list[Markup]:
    """A dot for each spike in view, and how many lie beyond."""
    inside, beyond = [value for value in spikes if value <= high], [value for value in spikes if value > high]
    marks = [dot(x(value), _FLOOR - 4, 2.4, "spike") for value in inside]
    if beyond:
        words = f"{len(beyond)} beyond, to {number(max(beyond))} →"
        marks.append(label(_WIDTH - _SIDE, _TOP - 8, words, class_="tick spike-label", anchor="end"))
    return marks
