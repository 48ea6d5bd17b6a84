"""``mpcore distill``: recover a pruned model from its dense one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from mpcore.cli.options import DATA_HELP, BatchSize, Json, Quiet, RunFolder, Seed, Workers
from mpcore.cli.prune import show_run
from mpcore.cli.session import session


def distill(
    run: RunFolder,
    train: Annotated[str, typer.Option("--train", "-t", metavar="DATA", help=f"Training images: {DATA_HELP}.")],
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training images.")] = 3,
    lr: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="X", help="Peak learning rate; left out, 1e-5 for adamw, 1e-3 for sgd."),
    ] = None,
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="adamw, or sgd with Nesterov momentum.")] = "adamw",
    accumulate: Annotated[int, typer.Option(min=1, metavar="N", help="Batches per step, where memory is short.")] = 1,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="float32, or bfloat16 for the forward passes alone.")
    ] = "float32",
    dropout: Annotated[
        bool, typer.Option("--dropout", help="Let the model's dropout and stochastic depth act.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="RUN", help="Work in a copy of the run folder made here.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use at most so many training samples.")] = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted distillation stopped.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Train the pruned model to answer like the dense one, masks held at every step; resumes after Ctrl-C.

    Several GPUs or machines share it: torchrun --nproc-per-node 2 --no-python mpcore distill RUN --train DATA
    """
    with session(json=json, quiet=quiet, resumes=True) as console:
        import mpcore
        from mpcore.models.data import load_data
        from mpcore.models.processes import Processes

        processes = Processes.find()
        if out is not None and processes.main:
            _copy(run, out)
        processes.wait()
        folder = run if out is None else out
        data = load_data(
            train, mpcore.load(folder, which="model"), batch_size=batch_size, workers=workers, seed=seed, limit=limit
        )
        settings: dict[str, Any] = {} if lr is None else {"lr": lr}
        settings |= {"optimizer": optimizer, "accumulate": accumulate, "precision": precision, "dropout": dropout}
        mpcore.distill(folder, data, epochs=epochs, seed=seed, resume=resume, progress=console.progress, **settings)
        if processes.main:
            show_run(console, folder)


def _copy(run: Path, out: Path) -> None:
    """Copy ``run`` to ``out``; a copy already there is taken up again."""
    if (out / "manifest.json").exists():
        return
    if not (run / "manifest.json").exists():
        raise FileNotFoundError(f"{run}: no finished run (manifest.json is missing)")
    if out.exists():
        raise ValueError(f"{out}: exists and is no run; choose another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run, partial)
    partial.rename(out)
