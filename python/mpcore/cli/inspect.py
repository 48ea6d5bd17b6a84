"""``mpcore inspect``: the Marchenko-Pastur fit of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcore.cli.options import (
    MODEL_HELP,
    Address,
    Engine,
    EngineOption,
    Json,
    OutFile,
    Quiet,
    Seed,
    Weights,
    check_there,
    is_spec,
)
from mpcore.cli.session import Session, session
from mpcore.folder import MANIFEST, RUN, unfinished

if TYPE_CHECKING:
    from mpcore.checkpoint import Weights as Checkpoint
    from mpcore.spectra import SpectraReport


class Method(str, Enum):
    """How singular values are computed."""

    auto, exact, lanczos = "auto", "exact", "lanczos"


class Law(str, Enum):
    """Which law the bulk is compared with."""

    auto, mp, free, whitened = "auto", "mp", "free", "whitened"


def _none_or_enough(count: int) -> int:
    if 0 < count < 100:
        raise typer.BadParameter(f"{count} is neither 0 nor at least 100")
    return count


Source = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"A .safetensors file, its index or folder; or {MODEL_HELP}")
]


def inspect(
    model: Source,
    method: Annotated[Method, typer.Option(help="exact: all singular values; lanczos: the edge alone.")] = Method.auto,
    law: Annotated[Law, typer.Option(help="The law the bulk is compared with.")] = Law.auto,
    alpha: Annotated[
        float, typer.Option(min=1e-15, max=0.5, metavar="P", help="Level of the spike test, 0 < P <= 0.5.")
    ] = 0.01,
    bootstrap: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            callback=_none_or_enough,
            help="Simulated spectra for the p-value and the interval of the variance: 0 (formulas), or at least 100.",
        ),
    ] = 0,
    weights: Weights = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layers", "-l", metavar="GLOB", help="Only these layers; may be repeated.")
    ] = None,
    engine: EngineOption = Engine.local,
    address: Address = None,
    json: Json = False,
    out: OutFile = None,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Fit the Marchenko-Pastur law to every layer: noise edge, spikes, share of noise, quality of the fit."""
    with session(json=json, quiet=quiet, out=out) as console:
        source, name = _source(model, weights, layers or [], seed)
        if others := _others(model, name):
            console.note(f"reads {name}; name {' or '.join(others)} to inspect that")
        import mpcore

        fits = mpcore.fit_edges(
            source,
            method=method.value,
            model=law.value,
            alpha=alpha,
            n_boot=bootstrap,
            seed=seed,
            engine=engine.name_or_none,
            address=address,
            progress=console.progress,
        )
        _show(console, name, fits)


def _source(model: str, weights: str | None, layers: list[str], seed: int) -> tuple[Any, str]:
    """Tensors of a checkpoint and the file they are in, or a torch module and the name that built it."""
    if not is_spec(model):
        check_there(model)
        folder = Path(model)
        from mpcore.checkpoint import open_weights

        if weights is not None:
            raise ValueError(f"--weights goes with a model to build, and {model} is a checkpoint already")
        if (folder / RUN).is_file() and not (folder / MANIFEST).is_file():
            raise FileNotFoundError(unfinished(folder))
        opened = open_weights(model)
        return _chosen(opened, layers), str(opened.path)
    if layers:
        raise ValueError("--layers goes with a checkpoint")
    from mpcore.models.source import load_model

    return load_model(model, weights=weights, seed=seed)[0], model


def _others(model: str, name: str) -> list[str]:
    """The networks of a run folder beside the one in the file ``name``."""
    folder = Path(model)
    if not (folder / RUN).is_file():
        return []
    networks = (folder / f"{which}.safetensors" for which in ("model", "student", "dense"))
    return [str(path) for path in networks if path.is_file() and str(path) != name]


def _chosen(weights: Checkpoint, layers: list[str]) -> Checkpoint | Mapping[str, Any]:
    """The matrices whose name, with or without ``.weight``, matches one of the globs; all without globs."""
    if not layers:
        return weights
    found = {glob: [name for name in weights if _matches(name, glob)] for glob in layers}
    for glob, names in found.items():
        if not names:
            raise ValueError(f"--layers: no tensor of {weights.path} matches {glob!r}")
    return weights.only([name for name in weights if any(name in names for names in found.values())])


def _matches(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name.removesuffix(".weight"), glob)


def _show(console: Session, name: str, fits: SpectraReport) -> None:
    from mpcore.cli.view import table
    from mpcore.report.text import number, percent, shape

    rows = [
        (
            layer,
            shape(fit.shape),
            number(fit.sigma_sq**0.5),
            number(fit.edge, 4),
            str(fit.n_spikes),
            percent(fit.bulk_fraction, 1),
            number(fit.gof.p_value, 2),
            fit.model_used,
        )
        for layer, fit in fits.items()
    ]
    columns = ("layer", "shape", "sigma", "edge", "spikes", "bulk", "gof p", "law")
    title = f"{name}: {len(rows)} layers, {len(fits.skipped)} tensors left out"
    console.emit(_document(name, fits), table(columns, rows, title=title))


def _document(source: str, fits: SpectraReport) -> dict[str, Any]:
    layers: Iterable[dict[str, Any]] = ({"name": name, **fit.to_dict()} for name, fit in fits.items())
    skipped = [{"name": name, "why": why} for name, why in fits.skipped.items()]
    return {"source": source, "layers": list(layers), "skipped": skipped}
