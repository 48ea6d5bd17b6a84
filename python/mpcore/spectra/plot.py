"""The picture of one fit. Imports matplotlib, so it is imported only when a plot is asked for."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from mpcore.spectra.edgefit import EdgeFit

BULK, LAW, EDGE, SPIKE = "#9db4cc", "#1f3a5f", "#c0392b", "#e08e0b"


def draw(fit: EdgeFit, ax: Axes | None, title: str | None) -> Axes:
    """See :meth:`EdgeFit.plot`."""
    if fit.values is None:
        raise ValueError("plot: the fit holds no singular values; fit with return_values=True")
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(7, 4), layout="constrained")[1]
    eigenvalues = np.asarray(fit.values) ** 2 / fit.n
    edge = fit.edge**2 / fit.n
    spikes = eigenvalues[: fit.n_spikes]
    limit = _limit(eigenvalues, edge, spikes)
    highest = _bulk(ax, eigenvalues, limit)
    if fit.sigma_sq > 0:
        _law(ax, fit)
    _edge(ax, fit, edge)
    _spikes(ax, spikes, limit)
    ax.set_xlim(min(0.0, eigenvalues[-1]), limit)
    ax.set_ylim(0, 1.12 * highest)
    ax.ticklabel_format(style="sci", scilimits=(-3, 4))
    ax.set_xlabel("eigenvalue of W Wᵀ / n")
    ax.set_ylabel("density")
    ax.set_title(title if title is not None else _title(fit), fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc="upper right")
    return ax


def svg(fit: EdgeFit) -> str:
    """The plot as one ``<svg>`` element, the same bytes for the same fit; on white, so that it reads on dark pages."""
    figure = Figure(figsize=(7, 3.6), layout="constrained", facecolor="white")
    draw(fit, figure.subplots(), None)
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "mpcore"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _limit(eigenvalues: NDArray[np.float64], edge: float, spikes: NDArray[np.float64]) -> float:
    """Right end: room for the spikes within 2.5 edges; those beyond are named at the border."""
    if edge <= 0:
        return float(eigenvalues[0]) * 1.05
    near = spikes[spikes <= 2.5 * edge]
    room = 1.3 if len(near) == len(spikes) else 1.6
    return float(max(near[0] * 1.1 if len(near) else 0.0, edge * room))


def _bulk(ax: Axes, eigenvalues: NDArray[np.float64], limit: float) -> float:
    """Histogram as a density of all eigenvalues; returns its highest bar."""
    inside = eigenvalues[eigenvalues <= limit]
    bins = int(np.clip(2.5 * np.sqrt(len(inside)), 12, 90))
    edges = np.linspace(0, limit, bins + 1)
    weights = np.full(len(inside), 1 / (len(eigenvalues) * (edges[1] - edges[0])))
    heights, *_ = ax.hist(
        inside, edges.tolist(), weights=weights, color=BULK, edgecolor="white", linewidth=0.4, label="eigenvalues"
    )
    return float(np.max(heights))


def _law(ax: Axes, fit: EdgeFit) -> None:
    # Points crowd at both edges, where the density is steep.
    angle = np.linspace(0, np.pi, 400)
    x = fit.lambda_minus + (fit.lambda_plus - fit.lambda_minus) * np.sin(angle / 2) ** 2
    density = np.asarray(fit.pdf(x)) * (fit.p - fit.n_spikes) / fit.p
    ax.plot(x[np.isfinite(density)], density[np.isfinite(density)], color=LAW, lw=1.8, label="Marchenko-Pastur")


def _edge(ax: Axes, fit: EdgeFit, edge: float) -> None:
    low, high = (value**2 / fit.n for value in fit.edge_ci)
    names = {"mp": "deflated Marchenko-Pastur", "free": "non-parametric", "whitened": "row and column profile"}
    ax.axvspan(low, high, color=EDGE, alpha=0.18, lw=0)
    ax.axvline(edge, color=EDGE, lw=1.4, label=f"edge ({names.get(fit.model_used, fit.model_used)}), 95 % band")


def _spikes(ax: Axes, spikes: NDArray[np.float64], limit: float) -> None:
    shown = spikes[spikes <= limit]
    beyond = len(spikes) - len(shown)
    transform = ax.get_xaxis_transform()
    if len(shown):
        height = np.full(len(shown), 0.03)
        ax.plot(shown, height, "v", color=SPIKE, ms=6, mew=0, transform=transform, label="spikes", zorder=4)
    if beyond:
        words = (
            f"{beyond}{' more' if len(shown) else ''} {'spike' if beyond == 1 else 'spikes'}, up to {spikes[0]:.3g}  ▸"
        )
        ax.text(0.995, 0.08, words, color=SPIKE, ha="right", fontsize=8, transform=ax.transAxes)


def _title(fit: EdgeFit) -> str:
    verdict = "accepted" if fit.gof.accepted else "rejected"
    spikes = f"{fit.n_spikes} {'spike' if fit.n_spikes == 1 else 'spikes'}"
    return f"{fit.shape[0]} x {fit.shape[1]}   {spikes}   Marchenko-Pastur {verdict} (p = {fit.gof.p_value:.2g})"
