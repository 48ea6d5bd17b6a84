"""``mpcore prune``: measure, permute, prune, compensate and certify a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpcore.cli.options import DATA_HELP, BatchSize, Json, Model, Quiet, Seed, Weights
from mpcore.cli.session import Session, session

if TYPE_CHECKING:
    from mpcore.models.recipe import Recipe


def prune(
    model: Model,
    calibration: Annotated[
        str, typer.Option("--calibration", "-c", metavar="DATA", help=f"Training images: {DATA_HELP}.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run folder to make, or to resume.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A recipe of the package, or a TOML file.")] = "default",
    pattern: Annotated[
        str | None, typer.Option("--pattern", "-p", metavar="N:M", help="Overrides the recipe's.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--evaluation", "-e", metavar="DATA", help="Held-out samples to compare on.")
    ] = None,
    weights: Weights = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Calibration samples, drawn at random.")] = 256,
    batch_size: BatchSize = 32,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Prune a model in an N:M pattern, repair and certify it; Ctrl-C is safe, the same command resumes."""
    with session(json=json, quiet=quiet, resumes=True) as console:
        import mpcore
        from mpcore.models.data import load_data
        from mpcore.models.source import load_model

        chosen = _recipe(recipe, pattern)
        network, source = load_model(model, weights=weights, seed=seed)
        held_out = None if evaluation is None else load_data(evaluation, network, batch_size=batch_size)
        run = mpcore.prune(
            network,
            chosen,
            calibration=load_data(calibration, network, batch_size=batch_size, seed=seed, limit=samples),
            out=out,
            evaluation=held_out,
            seed=seed,
            progress=console.progress,
            source=source,
        )
        show_run(console, run.folder)


def _recipe(name: str, pattern: str | None) -> Recipe:
    from mpcore.models.recipe import Recipe

    recipe = Recipe.of(name)
    return recipe if pattern is None else dataclasses.replace(recipe, pattern=pattern)


def show_run(console: Session, folder: Path) -> None:
    """What a run folder says about itself: layers, certificate and accuracy."""
    from mpcore.cli.view import accuracy_table, table
    from mpcore.records import Certificate, EvalTable, MaskPlan
    from mpcore.report.text import number, percent

    plan, certificate = MaskPlan.read(folder / "plan.json"), Certificate.read(folder / "certificate.json")
    evaluated = EvalTable.read(folder / "eval.json") if (folder / "eval.json").exists() else None
    rows = [
        (
            layer.name,
            str(layer.pattern),
            percent(layer.kept_score, 1),
            number(layer.mask_only_error),
            number(layer.relative_error),
        )
        for layer in plan.layers
    ]
    columns = ("layer", "pattern", "score kept", "error, mask only", "error, compensated")
    document = {
        "folder": str(folder),
        "layers": plan.layers,
        "groups": [{"consumers": group.consumers, "efficacy": group.efficacy} for group in plan.groups],
        "certificate": {
            name: getattr(certificate, name) for name in ("samples", "stable", "stable_path", "unchanged", "ce_bound")
        },
        "rows": () if evaluated is None else evaluated.rows,
    }
    view = [] if evaluated is None else [accuracy_table(evaluated.rows, title=evaluated.data)]
    certified = (
        f"certified: {certificate.stable} of {certificate.samples} labels cannot have changed; "
        f"{certificate.unchanged} did not"
    )
    console.emit(document, table(columns, rows), *view, certified, f"run folder: {folder}")
