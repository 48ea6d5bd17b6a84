"""``mpcore prune``: measure, permute, prune, compensate and certify a model."""

from __future__ import annotations

import dataclasses
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcore.cli.options import (
    CHECKPOINT_HELP,
    DATA_HELP,
    MODEL_HELP,
    Address,
    BatchSize,
    Engine,
    EngineOption,
    Json,
    Quiet,
    Seed,
    Weights,
    Workers,
    check_there,
    is_spec,
)
from mpcore.cli.session import Session, session

if TYPE_CHECKING:
    from mpcore.models.recipe import Recipe
    from mpcore.records import Certificate


Source = Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL_HELP}; or {CHECKPOINT_HELP}")]


class Score(str, Enum):
    """What a weight of a checkpoint is worth."""

    magnitude, wanda, activation = "magnitude", "wanda", "activation"


def prune(
    model: Source,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run folder to make, or to resume.")],
    calibration: Annotated[
        str | None, typer.Option("--calibration", "-c", metavar="DATA", help=f"Training images: {DATA_HELP}.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="A recipe of the package, or a TOML file; else 'default'.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", "-p", metavar="N:M", help="Overrides the recipe's; of a checkpoint 2:4.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--evaluation", "-e", metavar="DATA", help="Held-out samples to compare on.")
    ] = None,
    weights: Weights = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Calibration samples, drawn at random.")] = 256,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    score: Annotated[
        Score | None, typer.Option(help="Of a checkpoint: magnitude, or with --statistics wanda, activation.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option("--statistics", metavar="FILE", help="Of a checkpoint: input moments an earlier run stored."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="GLOB", help="Of a checkpoint: layers that stay dense; may be repeated."),
    ] = None,
    engine: EngineOption = Engine.local,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Prune a model in an N:M pattern, repair and certify it; Ctrl-C is safe, the same command resumes.

    The calibration samples, their order and --batch-size are part of the run: with others the command is refused.

    A checkpoint instead of a model is pruned file by file, however large it is, with no model class and no data.
    """
    with session(json=json, quiet=quiet, resumes=out) as console:
        if not is_spec(model):
            check_there(model)
            theirs = {"recipe": recipe, "calibration": calibration, "evaluation": evaluation, "weights": weights}
            _refuse(f"a model to build; {model} is a checkpoint", **theirs)
            kind = score.value if score else "magnitude" if statistics is None else "activation"
            where = {"engine": engine.name_or_none, "address": address, "progress": console.progress}
            _prune_checkpoint(
                console, model, pattern or "2:4", out, score=kind, statistics=statistics, skip=skip or [], **where
            )
            return
        _refuse("a checkpoint", score=score, statistics=statistics, skip=skip, address=address)
        if calibration is None:
            raise ValueError("--calibration is missing: a model is pruned with the help of some training images")
        if engine is Engine.ray:
            raise ValueError("--engine ray goes with a checkpoint")
        import mpcore
        from mpcore.cli.samples import load_samples
        from mpcore.models.source import load_model

        chosen = _recipe(recipe or "default", pattern)
        network, source = load_model(model, weights=weights, seed=seed)
        load = partial(load_samples, network=network, batch_size=batch_size, workers=workers)
        run = mpcore.prune(
            network,
            chosen,
            calibration=load(calibration, seed=seed, limit=samples),
            out=out,
            evaluation=None if evaluation is None else load(evaluation),
            seed=seed,
            progress=console.progress,
            source=source,
        )
        show_run(console, run.folder)


def _refuse(goes_with: str, **options: Any) -> None:
    """An option that this kind of model has no use for is a mistake, not a wish to ignore."""
    for name, value in options.items():
        if value:
            raise ValueError(f"--{name} goes with {goes_with}")


def _prune_checkpoint(console: Session, model: str, pattern: str, out: Path, **options: Any) -> None:
    from mpcore.cli.view import table
    from mpcore.records import LayerInventory, MaskPlan
    from mpcore.report.text import number, percent, shape
    from mpcore.stream import prune_checkpoint

    folder = prune_checkpoint(model, pattern, out=out, **options)
    plan, inventory = MaskPlan.read(folder / "plan.json"), LayerInventory.read(folder / "inventory.json")
    rows = [
        (v.name, shape(v.shape), str(v.pattern), percent(v.kept_score, 1), number(v.relative_error))
        for v in plan.layers
    ]
    pruned = sum(layer.shape[0] * layer.shape[1] - layer.kept for layer in plan.layers)
    dense = {layer.name: layer.reason for layer in inventory.layers if not layer.prunable}
    document = {"folder": str(folder), "layers": plan.layers, "dense": dense}
    summary = f"{pruned:,} of {inventory.parameters:,} weights are zero; {len(dense)} layers left alone"
    columns = ("layer", "shape", "pattern", "score kept", "error")
    console.emit(document, table(columns, rows), summary, f"run folder: {folder}")


def _recipe(name: str, pattern: str | None) -> Recipe:
    from mpcore.models.recipe import Recipe

    recipe = Recipe.of(name)
    return recipe if pattern is None else dataclasses.replace(recipe, pattern=pattern)


def brief(certificate: Certificate) -> dict[str, Any]:
    """The figures of a certificate without its samples, for a document."""
    names = ("samples", "stable", "stable_path", "unchanged", "ce_bound")
    return {name: getattr(certificate, name) for name in names}


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
        "certificate": brief(certificate),
        "rows": () if evaluated is None else evaluated.rows,
    }
    view = [] if evaluated is None else [accuracy_table(evaluated.rows, title=evaluated.data)]
    certified = (
        f"certified: {certificate.stable} of {certificate.samples} labels cannot have changed; "
        f"{certificate.unchanged} did not"
    )
    console.emit(document, table(columns, rows), *view, certified, f"run folder: {folder}")
