"""``mpcore doctor``: what this machine can run, and which layers of a model would gain."""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcore.cli.options import MODEL_HELP, Json, OutFile, Quiet, Seed, Weights
from mpcore.cli.session import session
from mpcore.folder import MANIFEST, RUN, refuse_checkpoint, unfinished

if TYPE_CHECKING:
    from mpcore.models.accelerate import Accelerated

_PACKAGES = (
    "numpy",
    "safetensors",
    "torch",
    "torchvision",
    "timm",
    "jinja2",
    "matplotlib",
    "scikit-learn",
    "ray",
    "onnx",
)


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|RUN]",
            help=f"Time its layers: a run folder, or {MODEL_HELP}; of an .onnx file say which are 2:4.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Samples in the timed batch.")
    ] = 8,
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="C,H,W", help="Shape of one sample; left out, timm's.")
    ] = None,
    weights: Weights = None,
    json: Json = False,
    out: OutFile = None,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Report versions, CPU and GPU; with a model, time every layer dense and sparse and say what gains.

    Of an .onnx file it says which layers TensorRT can run as 2:4, and why not the others.
    """
    with session(json=json, quiet=quiet, out=out) as console:
        from mpcore.cli.view import table

        facts = _environment()
        document: dict[str, Any] = {"environment": facts, "layers": []}
        view: list[Any] = [table(("", "found"), list(facts.items()), title="this machine")]
        if model is not None and model.endswith(".onnx"):
            found, more = _eligible(model)
        elif model is not None:
            found, more = _timed(model, weights, batch_size, input_shape, seed)
        else:
            found, more = {}, []
        console.emit(document | found, *view, *more)


def _timed(
    model: str, weights: str | None, batch_size: int, input_shape: str | None, seed: int
) -> tuple[dict[str, Any], list[Any]]:
    """Every layer of a model dense and sparse: for the document, and for the eye."""
    from mpcore.cli.view import table
    from mpcore.report.text import number

    report = _accelerated(model, weights, batch_size, input_shape, seed).report
    rows = report.rows()
    names = ("layer", "backend", "dense_s", "sparse_s", "gain", "reason")
    cells = [
        [number(v) if isinstance(v := row[name], float) or v is None else str(v) for name in names] for row in rows
    ]
    notes = [f"note: {note}" for note in report.notes]
    view = [table(names, cells, title=f"{model}, batches of {batch_size}"), f"dense: {report.baseline}", *notes]
    return {"layers": rows, "baseline": report.baseline, "notes": list(report.notes)}, view


def _eligible(path: str) -> tuple[dict[str, Any], list[Any]]:
    """Every layer of an ONNX file by TensorRT's rule: for the document, and for the eye."""
    from mpcore.cli.view import table
    from mpcore.models.onnx_check import eligible_24
    from mpcore.report.text import shape

    layers = eligible_24(path)
    cells = [(v.layer, v.op, shape(v.shape), "yes" if v.eligible else "no", v.reason) for v in layers]
    title = f"{path}: sparse weights by TensorRT's rule"
    view = [table(("layer", "op", "shape", "eligible", "reason"), cells, title=title)]
    return {"layers": [dataclasses.asdict(layer) for layer in layers]}, view


def _environment() -> dict[str, str]:
    from mpcore._native import __version__

    facts = {"mpcore": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True)}
    facts["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    for name in _PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return {**facts, "gpu": "unknown without torch" if facts["torch"] == "not installed" else _gpu()}


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"


def _accelerated(model: str, weights: str | None, batch_size: int, shape: str | None, seed: int) -> Accelerated:
    import torch

    import mpcore
    from mpcore.models.data import input_size
    from mpcore.models.evaluate import check_takes
    from mpcore.models.source import load_model

    if (Path(model) / MANIFEST).is_file():
        refuse_checkpoint(Path(model), "timing")
        network = mpcore.load(model)
    elif (Path(model) / RUN).is_file():
        raise FileNotFoundError(unfinished(Path(model)))
    else:
        network = load_model(model, weights=weights, seed=seed)[0]
    size = input_size(network) if shape is None else _parse_shape(shape)
    example = torch.randn(batch_size, *size, generator=torch.Generator().manual_seed(seed))
    check_takes(network, example, "timm's size for it" if shape is None else f"--input {shape!r}")
    return mpcore.accelerate(network, example)


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError:
        lengths = ()
    if not lengths or min(lengths) < 1:
        raise ValueError(f"--input {text!r}: wanted lengths such as 3,224,224")
    return lengths
