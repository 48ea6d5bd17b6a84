"""``mpcore evaluate``: accuracy of a run's networks, or of one model, on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpcore.cli.options import DATA_HELP, MODEL_HELP, BatchSize, Json, NoSeed, OutFile, Quiet, Weights, Workers
from mpcore.cli.session import session
from mpcore.folder import MANIFEST, refuse_checkpoint, unfinished

if TYPE_CHECKING:
    from torch import nn

_FILES = {"dense": "dense", "pruned": "model", "distilled": "student"}  # name in eval.json -> file of a run folder


def evaluate(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=f"A run folder; or {MODEL_HELP}")],
    data: Annotated[str, typer.Option("--data", "-d", metavar="DATA", help=f"Held-out samples: {DATA_HELP}.")],
    weights: Weights = None,
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use only the first so many samples.")] = None,
    json: Json = False,
    out: OutFile = None,
    quiet: Quiet = False,
    seed: NoSeed = 0,
) -> None:
    """Measure accuracy with 95 % intervals, and agreement with the dense model where there is one."""
    with session(json=json, quiet=quiet, out=out) as console:
        import mpcore
        from mpcore.cli.samples import load_samples
        from mpcore.cli.view import accuracy_table
        from mpcore.records import EvalTable

        networks = _networks(model, weights, seed)
        samples = load_samples(data, next(iter(networks.values())), batch_size=batch_size, workers=workers, limit=limit)
        rows = tuple(
            mpcore.evaluate(network, samples, teacher=networks.get("dense"), name=name, progress=console.progress)
            for name, network in networks.items()
        )
        result = EvalTable(rows, f"{data}: {rows[0].n} samples")
        console.emit(result.to_dict(), accuracy_table(rows, title=result.data))


def _networks(model: str, weights: str | None, seed: int) -> dict[str, nn.Module]:
    if not Path(model).is_dir():
        from mpcore.models.source import load_model

        return {"model": load_model(model, weights=weights, seed=seed)[0]}
    import mpcore

    folder = Path(model)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(unfinished(folder))
    refuse_checkpoint(folder, "evaluation")
    present = {name: which for name, which in _FILES.items() if (folder / f"{which}.safetensors").exists()}
    if not present:
        raise FileNotFoundError(f"{folder}: no model.safetensors in this run")
    return {name: mpcore.load(folder, which=which) for name, which in present.items()}
