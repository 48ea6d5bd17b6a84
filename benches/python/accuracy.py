"""How much accuracy pruning keeps: networks x patterns x methods, one shot and after three epochs of distillation.

``.venv/bin/python benches/python/accuracy.py`` measures everything, which takes many hours on two cores; options
choose a part. Every figure is a small JSON file in ``runs/accuracy``, written when it is known, so the program goes on
where it was stopped, and ``--table`` prints what is there and draws it. Needs ``make examples``.

What is compared has the same layers in the same pattern. Calibration, training and whatever was chosen use training
images or calibration photos only. "dense continued" is the dense network, trained without masks on the same images for
as long, on the labels where there are any.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from beds import BEDS, Bed
from rich.console import Console
from safetensors.torch import load_file
from tables import heading, machine, row

import mpcore
from mpcore.models.distill import train_student
from mpcore.records import Pattern, atomic

PATTERNS = ("2:4", "1:4", "4:8", "8:16", "6:12")
PAPER = mpcore.Recipe(score="quadratic", solver="none", sequence="parallel", permute="interleave")
METHODS = {
    "magnitude": mpcore.Recipe.named("magnitude"),
    "Wanda": mpcore.Recipe.named("wanda"),
    "SparseGPT": mpcore.Recipe.named("sparsegpt"),
    "CAST + interleave": PAPER,
    "mpcore, no permutation": mpcore.Recipe(permute=False),
    "mpcore": mpcore.Recipe(),
    "mpcore, residual": mpcore.Recipe(permute="residual"),
    "mpcore, gather": mpcore.Recipe(permute="gather"),
}
CONTINUED = "dense continued"
EPOCHS = (0, 3)
say = Console(stderr=True).print


@dataclass(frozen=True, order=True)
class Cell:
    """One entry of the table; ``pattern`` is "dense" for the dense network and its continuation."""

    network: str
    pattern: str
    method: str
    epochs: int
    seed: int

    def path(self, folder: Path) -> Path:
        """Where its figures are kept."""
        words = (self.network, self.pattern, self.method, f"{self.epochs}-epochs", f"seed-{self.seed}")
        return folder / ("_".join(words).replace(":", "-").replace(" ", "-").replace(",", "") + ".json")


def main(
    network: Annotated[
        list[str], typer.Option(default_factory=lambda: list(BEDS), help="Any of cnn, vit, vit_s14, lite0.")
    ],
    pattern: Annotated[list[str], typer.Option(default_factory=lambda: list(PATTERNS), help="N:M.")],
    method: Annotated[list[str], typer.Option(default_factory=lambda: list(METHODS), help="Rows of the table.")],
    epochs: Annotated[list[int], typer.Option(default_factory=lambda: list(EPOCHS), help="0 or 3.")],
    seed: Annotated[list[int], typer.Option(default_factory=lambda: [0, 1, 2], help="Of everything drawn.")],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("runs/accuracy"),
    plot: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/images/accuracy.png"),
    table: Annotated[bool, typer.Option("--table", help="Measure nothing: print and draw what is there.")] = False,
) -> None:
    """Measure what is missing, then print the table and draw accuracy against multiply-accumulates."""
    out.mkdir(parents=True, exist_ok=True)
    if not table:
        for name, number in product(network, seed):
            wanted = [Cell(name, "dense", "dense", 0, number)]
            wanted += [Cell(name, "dense", CONTINUED, 3, number)] if 3 in epochs else []
            wanted += [Cell(name, p, m, e, number) for p, m, e in product(pattern, method, sorted(epochs))]
            if missing := [cell for cell in wanted if not cell.path(out).exists()]:
                measure(missing, BEDS[name](out / "weights", number), out)
    cells = dict(load(out))
    print(machine() + f", torch {torch.__version__}\n")
    for line in lines(cells):
        print(line)
    if cells:
        draw(cells, plot)
        say(f"picture: {plot}")


def measure(cells: list[Cell], bed: Bed, out: Path) -> None:
    """Fill in the cells of one bed, those of one pruned network one after the other."""
    runs: dict[tuple[str, str], tuple[torch.nn.Module, dict[str, torch.Tensor]]] = {}
    for cell in cells:
        say(f"{cell.network} {cell.pattern} {cell.method}, {cell.epochs} epochs, seed {cell.seed}")
        began = time.perf_counter()
        key = (cell.pattern, cell.method)
        if key not in runs:
            runs = {key: prune(cell, bed)}
        network, masks = runs[key]
        if cell.epochs:
            features = bed.settings.features if masks else 0.0  # compares pruned layers
            settings = replace(bed.settings, epochs=cell.epochs, features=features)
            network = copy.deepcopy(network)
            # A continuation learns from the labels; where there are none, from the network that it started as.
            alone = cell.method == CONTINUED and bed.train.targets is not None
            train_student(network, None if alone else bed.network, masks, bed.train, settings=settings, progress=True)
        figures = bed.measure(network.eval())
        seconds = round(time.perf_counter() - began, 1)
        say(f"  {figures}, {seconds} s")
        with atomic(cell.path(out)) as temporary:
            document = {"cell": vars(cell), "score": bed.score, "figures": figures, "seconds": seconds}
            temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")


def prune(cell: Cell, bed: Bed) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The network of a cell before training, and its masks."""
    if cell.pattern == "dense":
        return bed.network, {}
    recipe = replace(METHODS[cell.method], pattern=cell.pattern, certify_samples=1)
    run = mpcore.prune(bed.network, recipe, calibration=bed.calibration, seed=cell.seed, progress=False)
    return run.model, load_file(run.folder / "masks.safetensors")


def load(out: Path) -> Iterator[tuple[Cell, dict[str, float]]]:
    """All cells that were measured, the figure that counts under ``score``."""
    for path in sorted(out.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        yield Cell(**document["cell"]), {**document["figures"], "score": document["figures"][document["score"]]}


def lines(cells: dict[Cell, dict[str, float]]) -> Iterator[str]:
    """The Markdown table of every network: mean over seeds of score and KL, ± the standard error of the mean."""
    for name in sorted({cell.network for cell in cells}):
        patterns = sorted({c.pattern for c in cells if c.network == name and c.pattern != "dense"}, key=PATTERNS.index)
        yield f"\n**{name}**\n"
        yield heading(["method", "epochs", *patterns])
        for method, epochs in (("dense", 0), (CONTINUED, 3), *product(METHODS, EPOCHS)):
            entries = []
            for pattern in patterns:
                place = "dense" if method in ("dense", CONTINUED) else pattern
                found = [
                    f
                    for c, f in cells.items()
                    if (c.network, c.pattern, c.method, c.epochs) == (name, place, method, epochs)
                ]
                entries.append(entry(found))
            if any(text != "–" for text in entries):
                yield row([method, epochs, *entries])


def entry(found: list[dict[str, float]]) -> str:
    """Score in % and KL in nats over seeds."""
    if not found:
        return "–"
    parts = []
    for figure, scale, digits in (("score", 100, 1), ("KL", 1, 3)):
        values = [scale * f[figure] for f in found]
        spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
        parts.append(f"{statistics.mean(values):.{digits}f}{spread}")
    return f"{parts[0]} ({parts[1]}; {len(found)})"


def draw(cells: dict[Cell, dict[str, float]], path: Path) -> None:
    """One panel per network: score by pattern, fewer multiply-accumulates to the left."""
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

    names = sorted({cell.network for cell in cells})
    figure = Figure(figsize=(4.2 * len(names), 4.8), layout="constrained")
    drawn: dict[str, Artist] = {}
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = {cell: 100 * found["score"] for cell, found in cells.items() if cell.network == name}
        patterns = sorted(
            {cell.pattern for cell in own} - {"dense"}, key=lambda p: (Pattern(p).density, Pattern(p).group)
        )
        for index, method in enumerate(METHODS):
            for epochs, style in ((0, "o-"), (3, "^--")):
                scores = {
                    x: [v for c, v in own.items() if (c.pattern, c.method, c.epochs) == (pattern, method, epochs)]
                    for x, pattern in enumerate(patterns)
                }
                means = {x: statistics.mean(values) for x, values in scores.items() if values}
                if means:
                    label = f"{method}, {epochs} epochs"
                    (drawn[label],) = axes.plot(list(means), list(means.values()), style, color=f"C{index}", ms=5)
        dense = [v for c, v in own.items() if c.method == "dense"]
        drawn["dense"] = axes.axhline(statistics.mean(dense), color="0.4", lw=1)
        axes.set(title=name, xlim=(-0.3, len(patterns) - 0.4), ylim=(0, 102))
        axes.set_xticks(range(len(patterns)), [f"{p}\n{100 * Pattern(p).density:.0f} %" for p in patterns])
        axes.spines[["top", "right"]].set_visible(False)
    order = ["dense", *(f"{method}, {epochs} epochs" for method, epochs in product(METHODS, EPOCHS))]
    shown = [label for label in order if label in drawn]
    figure.legend(
        [drawn[label] for label in shown], shown, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    figure.supxlabel("pattern, and multiply-accumulates of the pruned layers over dense", fontsize=10)
    figure.axes[0].set_ylabel("top-1 or, without labels, agreement with dense, %")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


if __name__ == "__main__":
    typer.run(main)
