"""Fit the edge of every matrix of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from mpcore.checkpoint import Weights, open_weights
from mpcore.engine import run_jobs
from mpcore.records import ConvergenceError, Record, to_numpy
from mpcore.serialise import to_cells
from mpcore.spectra.edgefit import EdgeFit
from mpcore.spectra.fit import fit_edge

Outcome = EdgeFit | str
"""A fit, or why there is none."""


@dataclass(frozen=True)
class SpectraReport(Record, Mapping[str, EdgeFit]):
    """Edge fits by name, in the order of the source; ``skipped`` maps every other name to why it has none."""

    kind: ClassVar[str] = "spectra"
    layers: dict[str, EdgeFit]
    skipped: dict[str, str]

    def __getitem__(self, name: str) -> EdgeFit:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per matrix, for a table or ``pandas.DataFrame``."""
        return [_row(name, fit) for name, fit in self.layers.items()]


def _row(name: str, fit: EdgeFit) -> dict[str, Any]:
    whole = to_cells(fit)
    row: dict[str, Any] = {"name": name}
    for key, value in whole.items():
        if key in ("spikes", "values"):
            continue
        if key in ("gof", "ranks"):
            row |= {f"{key}_{inner}": entry for inner, entry in value.items()}
        elif key.endswith("_ci"):
            low, high = value if value is not None else (None, None)
            row |= {f"{key}_low": low, f"{key}_high": high}
        else:
            row[key] = "; ".join(value) if key == "warnings" else value
    return row


def fit_edges(
    source: Any,
    *,
    threads: int | None = None,
    engine: str | None = None,
    address: str | None = None,
    progress: bool = False,
    **options: Any,
) -> SpectraReport:
    """Fit the edge of every weight matrix of a mapping, a safetensors checkpoint or a torch module.

    The largest matrices start first, each on one core unless there are more cores than matrices; the result does not
    depend on ``threads``. At most ``threads`` matrices are read at a time, and half-precision ones are widened to
    float32, never to float64. Convolutions are seen as (out, in * kh * kw). What cannot be fitted is in ``skipped``
    with the reason, and stops nothing.

    Args:
        source: mapping name -> array; path of a .safetensors file or index; or a module with ``named_modules``, of
            which the weights of two or four dimensions are taken (Linear, Conv2d, Embedding), named after the module.
        threads: matrices at a time; None uses all cores.
        engine: None, or "ray" to spread the matrices over a ray cluster (``pip install mpcore[scale]``); a matrix whose
            worker dies is fitted again.
        address: of a ray cluster; None takes the one this process is connected to, or starts one on this machine.
        progress: show a bar on stderr.
        **options: as for :func:`fit_edge`.

    Raises:
        TypeError: for a source of another kind.
        ValueError: for an option out of range.
        ImportError: for ``engine="ray"`` without ray.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> report = fit_edges({"a": rng.standard_normal((64, 128)), "bias": np.zeros(4)})
        >>> list(report), report.skipped
        (['a'], {'bias': '1 dimension: only matrices and 4-dimensional convolutions are fitted'})
    """
    fit_edge(np.eye(2), **options)  # so that a wrong option is an error, not a reason to skip every matrix
    arrays, shapes = _open(source)
    largest_first = sorted(shapes, key=lambda name: -math.prod(shapes[name]))
    if engine == "ray":
        fit: Callable[[Any], Outcome] = partial(_fit, options={"threads": 1, **options})
        jobs: Iterable[Any] = (_read(arrays, name, _portable) for name in largest_first)
    else:
        cores = max(1, (threads or os.cpu_count() or 1) // max(1, len(shapes)))
        fit, jobs = lambda name: _fit(_read(arrays, name), {"threads": cores, **options}), largest_first
    outcomes: dict[str, Outcome] = {}
    with _reporter(progress, len(shapes)) as report:
        for index, outcome in run_jobs(fit, jobs, engine=engine, address=address, threads=threads):
            outcomes[largest_first[index]] = outcome
            report(largest_first[index])
    found = {name: outcomes[name] for name in shapes}
    return SpectraReport(
        layers={name: fit for name, fit in found.items() if isinstance(fit, EdgeFit)},
        skipped={name: why for name, why in found.items() if isinstance(why, str)},
    )


def _fit(array: Any, options: Mapping[str, Any]) -> Outcome:
    """The fit of what :func:`_read` gave, or in words why it has none."""
    if isinstance(array, str):
        return array
    try:
        return fit_edge(array.reshape(array.shape[0], -1) if len(array.shape) == 4 else array, **options)
    except (ValueError, TypeError, ConvergenceError) as error:
        return str(error)


def _unfit(array: Any) -> str | None:
    """Why it is no matrix and no convolution."""
    if not hasattr(array, "shape"):
        return f"{type(array).__name__}: only arrays and tensors are fitted"
    dimensions = len(array.shape)
    if dimensions in (2, 4):
        return None
    plural = "" if dimensions == 1 else "s"
    return f"{dimensions} dimension{plural}: only matrices and 4-dimensional convolutions are fitted"


def _read(arrays: Mapping[str, Any], name: str, convert: Callable[[Any], Any] | None = None) -> Any:
    """One array, or in words why it cannot be read; a file that is gone is an error."""
    try:
        array = arrays[name]
        return _unfit(array) or (array if convert is None else convert(array))
    except (ValueError, TypeError) as error:
        return str(error)


def _open(source: Any) -> tuple[Mapping[str, Any], dict[str, tuple[int, ...]]]:
    """Arrays by name, read when asked for, and their shapes."""
    if isinstance(source, (str, os.PathLike)):
        source = open_weights(source)
    if isinstance(source, Weights):
        return source, source.shapes()
    if hasattr(source, "named_modules"):
        weights = ((name, getattr(module, "weight", None)) for name, module in source.named_modules())
        source = {name: weight for name, weight in weights if getattr(weight, "ndim", 0) in (2, 4)}
    if not isinstance(source, Mapping):
        wanted = "a mapping, a safetensors path or a module with named_modules"
        raise TypeError(f"source: {type(source).__name__} is not {wanted}")
    return source, {name: tuple(getattr(array, "shape", ())) for name, array in source.items()}


def _portable(array: Any) -> Any:
    """What NumPy can hold goes to another process without torch; whatever it cannot is refused there as here."""
    try:
        return to_numpy(array, "W", finite=False)
    except (TypeError, ValueError) as error:
        try:
            return np.asarray(array)
        except (TypeError, ValueError):
            raise error from None


def _reporter(progress: bool, total: int) -> AbstractContextManager[Callable[[str], None]]:
    if not progress:
        return nullcontext(lambda name: None)
    from mpcore.progress import progress_bar

    return progress_bar(True, "spectra", total)
