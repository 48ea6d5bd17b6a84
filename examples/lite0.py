"""EfficientNet-Lite0 (ImageNet) to 2:4 and 8:16, beside magnitude, Wanda and SparseGPT; nothing is retrained.

Calibrated on crops of one half of 255 photographs, compared with the dense network on crops of the other half, and on
foolbox's 20 labelled ImageNet images. Needs ``make examples``; run as ``.venv/bin/python examples/lite0.py``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from bed import MissingData
from bed.efficientnet import lite0, lite0_input
from bed.labelled import imagenet20
from bed.measure import closeness, logits
from bed.photos import CALIBRATION, EVALUATION, crops, load_photos
from bed.results import machine, print_table, write_json
from rich.console import Console

import mpcore

METHODS = {"magnitude": "magnitude", "Wanda": "wanda", "SparseGPT": "sparsegpt", "mpcore": "default"}
"""Row of the table -> recipe of the package."""

BATCH = 32
CAPTION = (
    "agreement: share of held-out photo crops that get the dense network's label, with 95 % Wilson interval; "
    "KL: of the pruned from the dense softmax, mean in nats; of 20: labelled ImageNet images right; "
    "layer error: mean relative output error on the calibration photos"
)


@dataclass(frozen=True)
class Images:
    """Network inputs: calibration and held-out crops in batches, and the labelled images."""

    calibration: list[torch.Tensor]
    held_out: list[torch.Tensor]
    labelled: torch.Tensor
    labels: torch.Tensor


def main(
    pattern: Annotated[
        list[str], typer.Option(help="N:M; may be given more than once.", default_factory=lambda: ["2:4", "8:16"])
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures and the run folders of the default recipe.")] = Path(
        "runs/lite0"
    ),
    seed: Annotated[int, typer.Option(help="Of the crops and of everything random in pruning.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A quarter of the images: to see that it works.")] = False,
) -> None:
    """Prune EfficientNet-Lite0 with each method and pattern, and print one table."""
    try:
        images, network = load_images(seed=seed, quick=quick), lite0()
    except MissingData as missing:
        Console(stderr=True).print(f"lite0: {missing}", highlight=False)
        raise typer.Exit(2) from None
    dense = logits(network, images.held_out)
    rows = [row("dense", "-", dense, network, images)]
    for text in pattern:
        for method, name in METHODS.items():
            folder = out / f"run-{text.replace(':', '-')}-seed{seed}" if method == "mpcore" and not quick else None
            rows.append(pruned_row(method, recipe(name, text), network, dense, images, seed=seed, out=folder))
    print_table("EfficientNet-Lite0, one shot", rows, caption=CAPTION)
    sizes = {"calibration": sum(map(len, images.calibration)), "evaluation": len(dense), "labelled": len(images.labels)}
    write_json(out / "figures.json", {"seed": seed, "images": sizes, "rows": rows, "machine": machine()})


def load_images(*, seed: int, quick: bool) -> Images:
    """256 calibration and 500 held-out crops (a quarter of each if ``quick``) and the 20 labelled images."""
    photos, share = load_photos(), 4 if quick else 1
    calibration = crops(photos, 256 // share, half=CALIBRATION, seed=seed)
    held_out = crops(photos, 500 // share, half=EVALUATION, seed=0)
    labelled, labels = imagenet20()
    return Images(
        list(lite0_input(calibration).split(BATCH)),
        list(lite0_input(held_out).split(BATCH)),
        lite0_input(labelled),
        torch.from_numpy(labels),
    )


def recipe(name: str, pattern: str) -> mpcore.Recipe:
    """A recipe of the package at another pattern, with a certificate on fewer samples; a baseline needs none."""
    return replace(mpcore.Recipe.named(name), pattern=pattern, certify_samples=32 if name == "default" else 1)


def pruned_row(
    method: str,
    chosen: mpcore.Recipe,
    network: torch.nn.Module,
    dense: torch.Tensor,
    images: Images,
    *,
    seed: int,
    out: Path | None,
) -> dict[str, Any]:
    """Prune a copy of the network and measure it."""
    Console(stderr=True).print(f"{chosen.pattern} {method}")
    began = time.perf_counter()
    run = mpcore.prune(network, chosen, calibration=images.calibration, out=out, seed=seed)
    seconds = time.perf_counter() - began
    layers = run.report.plan.layers
    error = sum(layer.relative_error for layer in layers) / len(layers)
    return row(method, str(chosen.pattern), dense, run.model, images, layer_error=error, seconds=seconds)


def row(
    method: str,
    pattern: str,
    dense: torch.Tensor,
    network: torch.nn.Module,
    images: Images,
    *,
    layer_error: float | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """One line of the table: the network against the dense logits and on the labelled images."""
    correct = int((logits(network, [images.labelled]).argmax(1) == images.labels).sum())
    return {
        "pattern": pattern,
        "method": method,
        **closeness(dense, logits(network, images.held_out)),
        "of_20": correct,
        "layer_error": layer_error,
        "seconds": seconds,
    }


if __name__ == "__main__":
    typer.run(main)
