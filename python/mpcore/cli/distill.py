"""``mpcore distill``: recover a pruned model from its dense one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcore.cli.options import DATA_HELP, BatchSize, Json, Quiet, RunFolder, Seed, Workers
from mpcore.cli.session import Session, session
from mpcore.folder import MANIFEST, refuse_checkpoint, unfinished

if TYPE_CHECKING:
    from mpcore.models.trainer import History


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
    resume: Annotated[
        bool, typer.Option(help="Go on where an interrupted distillation stopped; --no-resume discards the student.")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Train the pruned model to answer like the dense one, masks held at every step; resumes after Ctrl-C.

    Several GPUs or machines share it: torchrun --nproc-per-node 2 --no-python mpcore distill RUN --train DATA
    """
    folder = run if out is None else out
    with session(json=json, quiet=quiet, resumes=folder) as console:
        import mpcore
        from mpcore.cli.samples import load_samples
        from mpcore.models.processes import Processes

        processes = Processes.find()
        begins = folder if (folder / MANIFEST).is_file() else run
        if not (begins / MANIFEST).is_file():
            raise FileNotFoundError(unfinished(begins))
        refuse_checkpoint(begins, "distillation")
        if out is not None and processes.main:
            _copy(run, out)
        processes.wait()
        data = load_samples(
            train, mpcore.load(folder, which="model"), batch_size=batch_size, workers=workers, seed=seed, limit=limit
        )
        settings: dict[str, Any] = {} if lr is None else {"lr": lr}
        settings |= {"optimizer": optimizer, "accumulate": accumulate, "precision": precision, "dropout": dropout}
        student = mpcore.distill(
            folder, data, epochs=epochs, seed=seed, resume=resume, progress=console.progress, **settings
        )
        if processes.main:
            _show(console, folder, student.history)


def _show(console: Session, folder: Path, history: History) -> None:
    """What the distillation did: the loss, the student's certificate, and its accuracy where it was evaluated."""
    from mpcore.cli.prune import brief
    from mpcore.cli.view import accuracy_table
    from mpcore.records import Certificate, EvalTable
    from mpcore.report.text import number

    certificate = Certificate.read(folder / "certificate-student.json")
    evaluated = EvalTable.read(folder / "eval.json") if (folder / "eval.json").exists() else None
    first, last = history.entries[0], history.entries[-1]
    document = {
        "folder": str(folder),
        "steps": last.step,
        "loss": [first.loss, last.loss],
        "certificate": brief(certificate),
        "rows": () if evaluated is None else evaluated.rows,
    }
    view: list[Any] = [] if evaluated is None else [accuracy_table(evaluated.rows, title=evaluated.data)]
    view.append(f"trained: {last.step} steps, loss {number(first.loss)} -> {number(last.loss)}")
    view.append(
        f"certified, student: {certificate.stable} of {certificate.samples} labels cannot have changed from the dense "
        f"model's; {certificate.unchanged} did not"
    )
    if evaluated is None or "distilled" not in {row.model for row in evaluated.rows}:
        view.append(f"distilled: not evaluated; run `mpcore evaluate {folder} --data DATA`")
    console.emit(document, *view, f"run folder: {folder}")


def _copy(run: Path, out: Path) -> None:
    """Copy ``run`` to ``out``; a copy already there is taken up again."""
    if (out / MANIFEST).exists():
        return
    if out.exists():
        raise ValueError(f"{out}: exists and is no run; choose another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run, partial)
    partial.rename(out)
