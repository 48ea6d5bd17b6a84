"""Fit the edge of every matrix of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from mpcore.checkpoint import Weights, open_weights
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
    if engine not in (None, "ray"):
        raise ValueError(f"engine: {engine!r} is not None or 'ray'")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: {threads} is not at least 1")
    fit_edge(np.eye(2), **options)  # so that a wrong option is an error, not a reason to skip every matrix
    arrays, shapes = _open(source)
    largest_first = sorted(shapes, key=lambda name: -math.prod(shapes[name]))
    run = partial(_on_ray, address) if engine == "ray" else _in_threads
    outcomes: dict[str, Outcome] = {}
    with _reporter(progress, len(shapes)) as report:
        for name, outcome in run(arrays, largest_first, options, threads or os.cpu_count() or 1):
            outcomes[name] = outcome
            report(name)
    found = {name: outcomes[name] for name in shapes}
    return SpectraReport(
        layers={name: fit for name, fit in found.items() if isinstance(fit, EdgeFit)},
        skipped={name: why for name, why in found.items() if isinstance(why, str)},
    )


def fit_one(name: str, array: Any, options: Mapping[str, Any]) -> Outcome:
    """The fit of one array on one core, or in words why it has none. A pure function, for any executor."""
    if (why := _unfit(array)) is not None:
        return why
    matrix = array.reshape(array.shape[0], -1) if len(array.shape) == 4 else array
    try:
        return fit_edge(matrix, **{"threads": 1, **options})
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


def _read(name: str, arrays: Mapping[str, Any], convert: Callable[[Any], Any] | None = None) -> tuple[Any, str | None]:
    """One array, or in words why it cannot be read; a file that is gone is an error."""
    try:
        array = arrays[name]
        why = _unfit(array)
        return (array if why or convert is None else convert(array)), why
    except (ValueError, TypeError) as error:
        return None, str(error)


def _read_and_fit(name: str, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Outcome:
    array, why = _read(name, arrays)
    return why or fit_one(name, array, options)


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


def _in_threads(
    arrays: Mapping[str, Any], names: list[str], options: Mapping[str, Any], threads: int
) -> Iterator[tuple[str, Outcome]]:
    """Fits as they are done; at most ``threads`` arrays are in memory. Ctrl-C waits for the fits that have begun."""
    options = {"threads": max(1, threads // max(1, len(names))), **options}
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(names)
        running: dict[Future[Outcome], str] = {}
        while True:
            for name in waiting:
                running[pool.submit(_read_and_fit, name, arrays, options)] = name
                if len(running) >= threads:
                    break
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _on_ray(
    address: str | None, arrays: Mapping[str, Any], names: list[str], options: Mapping[str, Any], threads: int
) -> Iterator[tuple[str, Outcome]]:
    """The same as ray tasks of one core; in flight are ``threads`` or twice the cluster's cores, whichever is more."""
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise ImportError("engine='ray' needs ray: pip install mpcore[scale]") from None
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=3)(fit_one)
    waiting = iter(names)
    running: dict[Any, str] = {}
    limit = max(threads, 2 * int(ray.cluster_resources().get("CPU", 1)))
    while True:
        for name in waiting:
            array, why = _read(name, arrays, _portable)
            if why is not None:
                yield name, why
                continue
            running[task.remote(name, array, dict(options))] = name
            if len(running) >= limit:
                break
        if not running:
            return
        for reference in ray.wait(list(running))[0]:
            yield running.pop(reference), ray.get(reference)


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
