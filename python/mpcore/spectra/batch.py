"""Fit the edge of every matrix of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mpcore.checkpoint import open_weights
from mpcore.records import ConvergenceError, Record
from mpcore.spectra.edgefit import EdgeFit
from mpcore.spectra.fit import fit_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Outcome = EdgeFit | str


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
    whole = fit.to_dict()
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
    progress: bool | Callable[[int, int], None] = False,
    **options: Any,
) -> SpectraReport:
    """Fit the edge of every weight matrix of a mapping, a safetensors checkpoint or a torch module.

    The largest matrices start first, one core each; the result does not depend on ``threads``. Convolutions are seen
    as (out, in * kh * kw). What cannot be fitted is in ``skipped`` with the reason, and stops nothing.

    Args:
        source: mapping name -> array; path of a .safetensors file or index; or a module with ``named_modules``, of
            which the weights of two or four dimensions are taken (Linear, Conv2d, Embedding), named after the module.
        threads: matrices at a time; None uses all cores.
        engine: None, or "ray" to spread the matrices over a ray cluster (``pip install mpcore[scale]``).
        progress: True prints a line to stderr as it goes; a function is called with (done, total).
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
    if engine not in (None, "ray"):
        raise ValueError(f"engine: {engine!r} is not None or 'ray'")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: {threads} is not at least 1")
    fit_edge(np.eye(2), **options)  # so that a wrong option is an error, not a reason to skip every matrix
    arrays, sizes = _open(source)
    order = sorted(sizes, key=lambda name: -sizes[name])
    report = _reporter(progress, len(order))
    run = _with_ray if engine == "ray" else _with_threads
    outcomes = run(arrays, order, options, threads or os.cpu_count() or 1, report)
    found = {name: outcomes[name] for name in sizes}
    return SpectraReport(
        layers={name: fit for name, fit in found.items() if isinstance(fit, EdgeFit)},
        skipped={name: why for name, why in found.items() if isinstance(why, str)},
    )


def fit_one(name: str, array: Any, options: Mapping[str, Any]) -> Outcome:
    """The fit of one array on one core, or in words why it has none. A pure function, for any executor."""
    shape = tuple(getattr(array, "shape", ()))
    if len(shape) not in (2, 4):
        plural = "" if len(shape) == 1 else "s"
        return f"{len(shape)} dimension{plural}: only matrices and 4-dimensional convolutions are fitted"
    matrix = array.reshape(shape[0], -1) if len(shape) == 4 else array
    try:
        return fit_edge(matrix, **{"threads": 1, **options})
    except (ValueError, TypeError, ConvergenceError) as error:
        return str(error)
'''
