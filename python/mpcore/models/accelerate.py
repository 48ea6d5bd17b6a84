"""Swap N:M layers for sparse ones where they were measured to be faster, on this machine, at these shapes."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from mpcore.gpu.capability import why_not
from mpcore.gpu.sparse24 import unsuitable
from mpcore.gpu.table import SpeedTable
from mpcore.gpu.timing import interleave, machine
from mpcore.html import facts
from mpcore.models.dense_rivals import dense_calls, free_calls
from mpcore.models.evaluate import eval_mode
from mpcore.models.sparse_layers import (
    SparseConv2d,
    SparseLinear,
    SparseLinear24,
    conv_matrix,
)
from mpcore.records import FORMAT, Pattern, SpeedRow, atomic

BASELINE = "the faster of torch's own call and oneDNN with packed weights on the same input, runs alternating, medians"
LEAST_GAIN = 1.05
"""From this gain on a sparse layer replaces a dense one; less is within the noise of a shared machine."""

LEAST_WHOLE = 1.0
"""Below this gain of the whole model every layer stays dense, however fast its sparse form was alone."""

Layer = nn.Linear | nn.Conv2d
_GROUPS = (2, 4, 8, 12, 16, 32)


@dataclass(frozen=True)
class Accelerated:
    """``model``: a copy with the faster layers in place, for inference; ``report``: what was measured and why.

    ``difference`` is the largest change of an output on the example input, relative to the largest output.
    """

    model: nn.Module
    report: SpeedTable
    difference: float

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return facts({"largest change of an output": self.difference}, title="Accelerated") + self.report._repr_html_()


def accelerate(
    model: nn.Module, example_input: Tensor, *, backend: str = "auto", table: str | os.PathLike[str] | None = None
) -> Accelerated:
    """Replace every Linear and Conv2d with N:M weights by a sparse one where that is measured to be faster.

    Patterns are found in the weights themselves; those of a convolution run along its input channels. Each different
    layer (pattern, shape, input, dtype) is timed once, on the activations of the example, against the best dense call.
    Then the whole model is timed against the dense one, runs alternating; where it is slower, every layer stays dense.
    The sparse layers are operators (``torch.ops.mpcore``) that ``torch.compile`` and ``torch.export`` keep whole.

    Args:
        model: stays as it is; the copy shares nothing with it.
        example_input: one batch of the size to be run; the result takes any other size too.
        backend: ``"cpu"`` (our kernels), ``"cslt"`` (2:4 on sparse tensor cores), or ``"auto"``, by the model's device.
        table: a JSON file of earlier timings on this machine, taken as measured and added to; None times everything.

    Returns:
        Model, report and the change of the output. Every Linear and Conv2d has a row with the reason for its back end.
        ``report.notes`` names what needs no sparsity and is faster still, if anything is.

    Raises:
        ValueError: for an unknown back end, one that cannot run here, or a table that is not one.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> accelerate(net, torch.randn(2, 8)).report.rows()[0]["reason"]
        'no N:M pattern: 0 % of its weights are zero'
    """
    device = next(chain(model.parameters(), model.buffers())).device
    backend = _choose(backend, device)
    timings = _Timings(table, machine(device), device)
    fast, seen = copy.deepcopy(model).eval(), _observe(model, example_input)
    rows, swapped = [], []
    for name, module in list(model.named_modules()):
        if isinstance(module, Layer):
            row, swap = _decide(name, module, seen.get(name), backend, timings)
            rows.append(row)
            if swap is not None:
                fast = _swap(fast, name, swap)
                swapped.append((row, module, seen[name]))
    if swapped and not _pays(model, fast, example_input, backend, timings):
        fast, swapped = copy.deepcopy(model).eval(), []
        rows = [_dense_after_all(row) for row in rows]
    notes = _notes(swapped, timings) if backend == "cpu" else ()
    timings.save()
    report = SpeedTable(machine(device), torch.get_num_threads(), BASELINE, tuple(rows), notes)
    return Accelerated(fast, report, _difference(model, fast, example_input))


def find_pattern(weight: Tensor, *, groups: Sequence[int] = _GROUPS) -> Pattern | None:
    """The sparsest N:M that a (rows, columns) weight obeys, the smallest M among equals; None if it obeys none.

    Args:
        weight: (rows, columns).
        groups: the M to try; those that do not divide the columns are passed over.

    Example:
        >>> str(find_pattern(torch.tensor([[1.0, 0, 0, 2, 0, 0, 3, 4]])))
        '2:4'
    """
    found = []
    for group in groups:
        if weight.shape[1] % group == 0:
            keep = max(int((weight != 0).reshape(len(weight), -1, group).sum(2).max()), 1)
            if keep < group:
                found.append(Pattern((keep, group)))
    return min(found, key=lambda pattern: (pattern.density, pattern.group), default=None)


class _Timings:
    """Median seconds of the calls of a layer by machine, threads and layer; optionally on disk."""

    def __init__(self, path: str | os.PathLike[str] | None, here: str, device: torch.device) -> None:
        self.path = None if path is None else Path(path)
        self.here, self.device = f"{here}, {torch.get_num_threads()} threads", device
        self.known: dict[str, dict[str, float]] = {}
        if self.path is not None and self.path.exists():
            try:
                data = json.loads(self.path.read_text(encoding="utf-8"))
                for key, times in data["timings"].items():
                    self.known[key] = {name: float(seconds) for name, seconds in times.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.path}: not a table of timings ({error!r})") from None

    def measure(self, key: str, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        key = f"{self.here}, {key}"
        known = self.known.setdefault(key, {})
        if missing := {name for name in calls if _quartile(name) not in known}:
            with torch.inference_mode():
                timings = interleave(list(calls.values()), device=self.device)
            for name, timing in zip(calls, timings, strict=True):
                if name in missing:
                    known[name], known[_quartile(name)] = timing.median, timing.low
        return {name: known[name] for call in calls for name in (call, _quartile(call))}

    def save(self) -> None:
        if self.path is not None:
            document = {"format": FORMAT, "kind": "timings", "timings": self.known}
            with atomic(self.path) as temporary:
                temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _quartile(call: str) -> str:
    return f"{call}, lower quartile"


def _sure_gain(times: Mapping[str, float], rival: str) -> float:
    """How many times as fast the sparse call is; by medians or lower quartiles, whichever promises less.

    On a busy machine one of the two may say anything: other processes take slices longer than a call.
    """
    return min(
        times[name] / times[sparse] for name, sparse in ((rival, "sparse"), (_quartile(rival), _quartile("sparse")))
    )


def _choose(backend: str, device: torch.device) -> str:
    if backend not in ("auto", "cpu", "cslt"):
        raise ValueError(f"backend {backend!r} is not one of auto, cpu, cslt")
    if backend == "auto":
        backend = "cslt" if device.type == "cuda" else "cpu"
    reason = why_not(device) if backend == "cslt" else "" if device.type == "cpu" else f"the model is on {device}"
    if reason:
        raise ValueError(f"backend {backend!r} cannot run here: {reason}")
    return backend


def _observe(model: nn.Module, example_input: Tensor) -> dict[str, Tensor]:
    """The first input of every Linear and Conv2d."""
    seen: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        seen.setdefault(name, x)

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: note(name, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, Layer)
    ]
    try:
        with eval_mode(model):
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _decide(
    name: str, module: Layer, x: Tensor | None, backend: str, timings: _Timings
) -> tuple[SpeedRow, nn.Module | None]:
    """The row of one layer, and what takes its place."""
    reason, pattern = _unfit(module, x, backend)
    if reason or pattern is None or x is None:
        return SpeedRow(name, False, "dense", None, None, None, reason), None
    sparse: nn.Module
    if isinstance(module, nn.Conv2d):
        sparse = SparseConv2d(module, pattern)
    else:
        sparse = SparseLinear(module, pattern) if backend == "cpu" else SparseLinear24(module, x)
    dense = dense_calls(module, x)
    times = timings.measure(f"{backend} {pattern} {_key(module, x)}", {**dense, "sparse": lambda: sparse(x)})
    rival = min(dense, key=lambda call: times[call])
    dense_s, sparse_s = times[rival], times["sparse"]
    gain = dense_s / sparse_s
    if _sure_gain(times, rival) < LEAST_GAIN:
        why = f"{pattern}, but the gain over {rival} is below {LEAST_GAIN}"
        return SpeedRow(name, True, "dense", dense_s, sparse_s, gain, why), None
    return SpeedRow(name, True, backend, dense_s, sparse_s, gain, f"{pattern}, measured faster than {rival}"), sparse


def _pays(model: nn.Module, fast: nn.Module, example_input: Tensor, backend: str, timings: _Timings) -> bool:
    """Whether the model with its sparse layers is at least as fast as the dense one, end to end."""
    design = hashlib.sha256(f"{model}\n{fast}".encode()).hexdigest()[:16]
    key = f"{backend} whole model {design} x {tuple(example_input.shape)} {example_input.dtype}"
    with eval_mode(model, fast):
        times = timings.measure(key, {"dense": lambda: model(example_input), "sparse": lambda: fast(example_input)})
    return _sure_gain(times, "dense") >= LEAST_WHOLE


def _dense_after_all(row: SpeedRow) -> SpeedRow:
    if row.backend == "dense":
        return row
    return replace(row, backend="dense", reason=f"{row.reason} alone, but the whole model is not faster with it")


def _key(module: Layer, x: Tensor) -> str:
    """All that the time of a layer depends on."""
    key = f"{tuple(module.weight.shape)} x {tuple(x.shape)} {module.weight.dtype}"
    if isinstance(module, nn.Linear):
        return key
    order = "channels_last" if not x.is_contiguous() else "contiguous"
    return f"{key} {order} stride {module.stride} padding {module.padding} dilation {module.dilation}"


def _unfit(module: Layer, x: Tensor | None, backend: str) -> tuple[str, Pattern | None]:
    """Why a layer cannot run sparse, or the pattern it has."""
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    if type(module).forward is not kind.forward or module._forward_hooks or module._forward_pre_hooks:
        return f"a {kind.__name__} with a forward of its own, or with hooks", None
    if x is None:
        return "the example does not call it", None
    if x.dtype != module.weight.dtype:
        return f"its input is {x.dtype}, its weight {module.weight.dtype}", None
    if isinstance(module, nn.Conv2d) and (reason := _unfit_convolution(module, x, backend)):
        return reason, None
    weight = module.weight.detach()
    if isinstance(module, nn.Conv2d):
        pattern = find_pattern(conv_matrix(weight), groups=[g for g in _GROUPS if module.in_channels % g == 0])
    else:
        pattern = find_pattern(weight)
    if pattern is None:
        share = float((weight == 0).double().mean())
        return f"no N:M pattern: {100 * share:.0f} % of its weights are zero", None
    if backend == "cpu":
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"{weight.dtype}: the CPU kernels take float32 and bfloat16", None
    elif pattern.density > 0.5 or pattern.group > 4:
        return f"{pattern} is not 2:4", None
    elif reason := unsuitable(tuple(weight.shape), weight.dtype):
        return reason, None
    return "", pattern


def _unfit_convolution(module: nn.Conv2d, x: Tensor, backend: str) -> str:
    if backend != "cpu":
        return "convolutions run dense on a GPU: no open kernel takes 2:4 convolutions"
    if module.groups != 1:
        return f"a convolution in {module.groups} groups"
    if module.padding_mode != "zeros" or module.padding == "same":
        return f"padding {module.padding!r} in mode {module.padding_mode!r}"
    return "" if x.ndim == 4 else "its input has no batch dimension"


def _notes(swapped: Sequence[tuple[SpeedRow, Layer, Tensor]], timings: _Timings) -> tuple[str, ...]:
    """What needs no sparsity and is faster still, judged on the costliest sparse Linear in float32."""
    linear = [
        (row, module, x)
        for row, module, x in swapped
        if isinstance(module, nn.Linear) and x.dtype == torch.float32 and row.sparse_s is not None
    ]
    if not linear:
        return ()
    row, module, x = max(linear, key=lambda entry: entry[0].sparse_s or 0.0)
    assert row.sparse_s is not None
    calls = free_calls(module, x)
    times = timings.measure(f"free {_key(module, x)}", calls)
    layer = row.layer or "the layer"
    return tuple(
        f"{name} is {row.sparse_s / seconds:.2f} times as fast as {layer} sparse, and needs no sparsity"
        for name, seconds in ((name, times[name]) for name in calls)
        if row.sparse_s / seconds >= LEAST_GAIN
    )


def _swap(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


def _difference(model: nn.Module, fast: nn.Module, example_input: Tensor) -> float:
    with eval_mode(model, fast):
        before, after = model(example_input), fast(example_input)
    if not isinstance(before, Tensor):
        before, after = before[0], after[0]
    largest = float(before.abs().max())
    return float((after - before).abs().max()) / largest if largest else 0.0
