"""Swap N:M layers for sparse ones where they were measured to be faster, on this machine, at these shapes."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.gpu.capability import why_not
from mpcore.gpu.table import SpeedTable
from mpcore.gpu.timing import machine
from mpcore.html import facts
from mpcore.models.batches import layer_input
from mpcore.models.dense_rivals import dense_calls, free_calls
from mpcore.models.eligible import Layer, why_dense
from mpcore.models.evaluate import check_module, eval_mode
from mpcore.models.inventory import check_copyable
from mpcore.models.outputs import check_example, difference, floating, rounding, run, tolerance
from mpcore.models.sparse_layers import Sparse, SparseConv2d, SparseLinear, SparseLinear24
from mpcore.models.timings import Timings, sure_gain
from mpcore.records import SpeedRow

BASELINE = "the faster of torch's own call and oneDNN with packed weights on the same input, runs alternating, medians"
LEAST_GAIN = 1.05
"""From this gain on a sparse layer replaces a dense one; less is within the noise of a shared machine."""

LEAST_WHOLE = 1.0
"""Below this gain of the whole model every layer stays dense, however fast its sparse form was alone."""


@dataclass(frozen=True)
class Accelerated:
    """``model``: a copy with the faster layers in place, for inference; ``report``: what was measured and why.

    ``difference`` is the largest change of a floating-point output on the example input, relative to the largest entry
    of its tensor; 0 where there is no such output.
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
    A layer whose output differs by more than rounding stays dense, as does one that the model cannot do without: it is
    run once with all of them. Then the whole model is timed against the dense one, runs alternating; where it is
    slower, every layer stays dense.
    The sparse layers are operators (``torch.ops.mpcore``) that ``torch.compile`` and ``torch.export`` keep whole.

    Args:
        model: stays as it is; the copy shares nothing with it, and none of its parameters has a gradient.
        example_input: one batch of the size to be run; the result takes any other size too.
        backend: ``"cpu"`` (our kernels), ``"cslt"`` (2:4 on sparse tensor cores), or ``"auto"``, by the model's device.
        table: a JSON file of earlier timings, added to; those of this machine, these versions and settings are taken as
            measured. None times everything.

    Returns:
        Model, report and the change of the output. Every Linear and Conv2d has a row with the reason for its back end.
        ``report.notes`` names what needs no sparsity and is faster still, if anything is.

    Raises:
        TypeError: if ``model`` is no module or ``example_input`` no tensor.
        ValueError: for an unknown back end, one that cannot run here, a table that is not one, or a model of which no
            copy can be made that computes the same.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> accelerate(net, torch.randn(2, 8)).report.rows()[0]["reason"]
        'no N:M pattern: 0 % of its weights are zero'
    """
    check_module(model, "model")
    check_example(example_input)
    device = next(chain(model.parameters(), model.buffers(), [example_input])).device
    backend = _choose(backend, device)
    timings = Timings(table, machine(device), device)
    choices, before = _choices(model, example_input, backend, timings)
    fast, change, refused = _assemble(model, choices, example_input, before)
    if len(refused) < len(choices.swaps) and not _pays(model, fast, example_input, backend, timings):
        refused |= {name: "the whole model is not faster with it" for name in choices.swaps if name not in refused}
        fast = _copy(model)
        change = difference(before, floating(run(fast, example_input)))
    with eval_mode(model):
        notes = _notes(choices.kept(refused), timings) if backend == "cpu" else ()
    timings.save()
    report = SpeedTable(machine(device), torch.get_num_threads(), BASELINE, choices.rows(refused), notes)
    return Accelerated(fast, report, change)


@dataclass(frozen=True)
class _Choice:
    """One layer of the model: its row, and where a sparse layer is faster that layer and the input it was timed on."""

    row: SpeedRow
    module: Layer
    x: Tensor | None = None
    sparse: Sparse | None = None


@dataclass(frozen=True)
class _Choices:
    """Of all layers, in the order of the model."""

    layers: Mapping[str, _Choice]

    @property
    def swaps(self) -> dict[str, Sparse]:
        """The sparse layers that are faster, by name."""
        return {name: choice.sparse for name, choice in self.layers.items() if choice.sparse is not None}

    def kept(self, refused: Mapping[str, str]) -> list[_Choice]:
        """The layers that run sparse."""
        return [self.layers[name] for name in self.swaps if name not in refused]

    def rows(self, refused: Mapping[str, str]) -> tuple[SpeedRow, ...]:
        """One for each layer; ``refused`` says of layers that are faster why they stay dense nevertheless."""
        return tuple(
            replace(choice.row, backend="dense", reason=f"{choice.row.reason} alone, but {refused[name]}")
            if name in refused
            else choice.row
            for name, choice in self.layers.items()
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


def _choices(model: nn.Module, example_input: Tensor, backend: str, timings: Timings) -> tuple[_Choices, list[Tensor]]:
    """What every layer would best run as, judged alone, and the outputs of the dense model."""
    seen = _observe(model, example_input)
    before = floating(run(model, example_input))
    with eval_mode(model):
        layers = {
            name: _decide(name, module, seen.get(name), backend, timings)
            for name, module in model.named_modules()
            if isinstance(module, Layer)
        }
    return _Choices(layers), before


def _observe(model: nn.Module, example_input: Tensor) -> dict[str, Tensor]:
    """The first input of every Linear and Conv2d."""
    seen: dict[str, Tensor] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with suppress(TypeError):  # no tensor: a forward of its own, which is said of the layer in any case
            seen.setdefault(name, layer_input(args, kwargs))

    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
        )
        for name, module in model.named_modules()
        if isinstance(module, Layer)
    ]
    try:
        run(model, example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _decide(name: str, module: Layer, x: Tensor | None, backend: str, timings: Timings) -> _Choice:
    """Whether a sparse layer is faster in the place of one layer, and computes the same."""
    reason, pattern = why_dense(module, x, backend)
    if reason or pattern is None or x is None:
        return _Choice(SpeedRow(name, False, "dense", None, None, None, reason), module)
    sparse: Sparse
    if isinstance(module, nn.Conv2d):
        x, sparse = x if x.ndim == 4 else x[None], SparseConv2d(module, pattern)
    else:
        sparse = SparseLinear(module, pattern) if backend == "cpu" else SparseLinear24(module, x)
    if _computes_something_else(module, sparse, x):
        why = f"{pattern}, but its output is not that of its weight and bias"
        return _Choice(SpeedRow(name, False, "dense", None, None, None, why), module)
    dense = dense_calls(module, x)
    times = timings.measure(f"{backend} {pattern} {_key(module, x)}", {**dense, "sparse": lambda: sparse(x)})
    rival = min(dense, key=lambda call: times[call])
    dense_s, sparse_s = times[rival], times["sparse"]
    gain = dense_s / sparse_s
    if sure_gain(times, rival) < LEAST_GAIN:
        why = f"{pattern}, but the gain over {rival} is below {LEAST_GAIN}"
        return _Choice(SpeedRow(name, True, "dense", dense_s, sparse_s, gain, why), module)
    row = SpeedRow(name, True, backend, dense_s, sparse_s, gain, f"{pattern}, measured faster than {rival}")
    return _Choice(row, module, x, sparse)


def _computes_something_else(module: Layer, sparse: Sparse, x: Tensor) -> bool:
    """Whether the outputs differ by more than rounding, relative to the largest sum of the products' magnitudes."""
    dense, found = module(x), sparse(x)
    if dense.shape != found.shape:
        return True
    weight, bias = module.weight.abs(), None if module.bias is None else module.bias.abs()
    if isinstance(module, nn.Conv2d):
        size = nn.Conv2d._conv_forward(module, x.abs(), weight, bias)
    else:
        size = nn.functional.linear(x.abs(), weight, bias)
    sums = 32 * torch.finfo(torch.float32).eps * math.sqrt(weight[0].numel())
    finite = dense.isfinite() & size.isfinite()
    change, most = (dense.float() - found.float()).abs()[finite], size.float()[finite]
    return bool(len(most)) and not bool((change <= (4 * rounding(x.dtype) + sums) * most.max()).all())


def _assemble(
    model: nn.Module, choices: _Choices, example_input: Tensor, before: Sequence[Tensor]
) -> tuple[nn.Module, float, dict[str, str]]:
    """A copy with the sparse layers in place, how far its output is off, and why some were left out.

    A model may do more with a layer than call it. Where it fails or computes something else, every sparse layer is
    tried alone, and those that do no harm stay.
    """
    most = tolerance(model, before)

    def attempt(fast: nn.Module) -> tuple[float, str]:
        try:
            change = difference(before, floating(run(fast, example_input)))
        except Exception as error:  # whatever the model's own code raises
            reason = " ".join(str(error).split())[:120]
            return math.inf, f"the model does not run with it ({type(error).__name__}: {reason})"
        return change, "" if change <= most else f"with it an output changes by {change:.2g} of the largest"

    swaps, refused = choices.swaps, {}
    change, problem = attempt(fast := _swapped(_copy(model), swaps))
    if problem:
        trial = _copy(model)
        for name, sparse in swaps.items():
            dense, trial = trial.get_submodule(name), _swapped(trial, {name: sparse})
            if alone := attempt(trial)[1]:
                refused[name] = alone
            trial = _swapped(trial, {name: dense})
        left = {name: sparse for name, sparse in swaps.items() if name not in refused}
        change, problem = attempt(fast := _swapped(_copy(model), left))
        if problem:
            refused |= dict.fromkeys(left, problem)
            change, problem = attempt(fast := _copy(model))
    if problem:
        raise ValueError(
            f"model: a copy without any sparse layer computes something else on example_input, by {change:.2g} of the "
            "largest output; does the model keep state from call to call?"
        )
    return fast, change, refused


def _copy(model: nn.Module) -> nn.Module:
    """For inference: in evaluation mode, no parameter with a gradient."""
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except RuntimeError as error:
        check_copyable(model)
        raise ValueError(f"model: cannot be copied ({error})") from error


def _pays(model: nn.Module, fast: nn.Module, example_input: Tensor, backend: str, timings: Timings) -> bool:
    """Whether the model with its sparse layers is at least as fast as the dense one, end to end."""
    design = hashlib.sha256(f"{model}\n{fast}".encode()).hexdigest()[:16]
    key = f"{backend} whole model {design} x {tuple(example_input.shape)} {example_input.dtype}"
    with eval_mode(model, fast):
        times = timings.measure(key, {"dense": lambda: model(example_input), "sparse": lambda: fast(example_input)})
    return sure_gain(times, "dense") >= LEAST_WHOLE


def _key(module: Layer, x: Tensor) -> str:
    """All that the time of a layer depends on."""
    key = (
        f"{tuple(module.weight.shape)} x {tuple(x.shape)} {module.weight.dtype}{'' if module.bias is None else ' bias'}"
    )
    if isinstance(module, nn.Linear):
        return key
    order = "channels_last" if not x.is_contiguous() else "contiguous"
    return f"{key} {order} stride {module.stride} padding {module.padding} dilation {module.dilation}"


def _notes(kept: Sequence[_Choice], timings: Timings) -> tuple[str, ...]:
    """What needs no sparsity and is faster still, judged on the costliest sparse Linear in float32."""
    linear = [
        (choice.row.sparse_s, choice.row.layer, choice.module, choice.x)
        for choice in kept
        if isinstance(choice.module, nn.Linear) and choice.x is not None and choice.x.dtype == torch.float32
    ]
    if not linear:
        return ()
    sparse_s, name, module, x = max(linear, key=lambda entry: entry[0] or 0.0)
    assert sparse_s is not None
    calls = free_calls(module, x)
    times = timings.measure(f"free {_key(module, x)}", calls)
    return tuple(
        f"{call} is {sparse_s / times[call]:.2f} times as fast as {name or 'the layer'} sparse, and needs no sparsity"
        for call in calls
        if sparse_s / times[call] >= LEAST_GAIN
    )


def _swapped(fast: nn.Module, swaps: Mapping[str, nn.Module]) -> nn.Module:
    """The model with these layers in place, under all the names a layer has."""
    # Looked up before anything moves: a layer may lie inside another, as those of a parametrization do.
    for before, layer in [(fast.get_submodule(name), layer) for name, layer in swaps.items()]:
        if before is fast:
            return layer
        for parent in list(fast.modules()):
            for child in [child for child, module in parent._modules.items() if module is before]:
                setattr(parent, child, layer)
                if isinstance(parent, nn.TransformerEncoderLayer) and isinstance(layer, Sparse):
                    # Its fast path reads the weights and calls no layer; torch takes the other where there are hooks.
                    layer._forward_pre_hooks.clear()
                    layer.register_forward_pre_hook(_no_fast_path)
    for module in fast.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, Sparse) for m in module.modules()):
            module.use_nested_tensor = False
    return fast


def _no_fast_path(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Hook that does nothing."""
