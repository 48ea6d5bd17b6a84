"""Swap N:M layers for sparse ones where they were measured to be faster, on this machine, at these shapes."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcore.gpu.capability import why_not
from mpcore.gpu.sparse24 import compress, tune, unsuitable
from mpcore.gpu.sparse24 import linear as linear24
from mpcore.gpu.table import SpeedTable
from mpcore.gpu.timing import interleave, machine
from mpcore.models.evaluate import eval_mode
from mpcore.records import FORMAT, Pattern, SpeedRow, atomic
from mpcore.sparse import nm_linear, pack

BASELINE = "torch.nn.functional.linear on the same input, runs alternating, medians"
LEAST_GAIN = 1.05
"""From this gain on a sparse layer replaces a dense one; less is within the noise of a shared machine."""

_GROUPS = (2, 4, 8, 12, 16, 32)


@dataclass(frozen=True)
class Accelerated:
    """``model``: a copy with the faster layers in place, for inference; ``report``: what was measured and why.

    ``difference`` is the largest change of an output on the example input, relative to the largest output.
    """

    model: nn.Module
    report: SpeedTable
    difference: float


class SparseLinear(nn.Module):
    """A Linear whose N:M weight is stored packed; forward only."""

    def __init__(self, dense: nn.Linear, pattern: Pattern) -> None:
        super().__init__()
        self.in_features, self.out_features, self.pattern = dense.in_features, dense.out_features, pattern
        self.packed = pack(dense.weight.detach(), pattern)
        self.bias = None if dense.bias is None else dense.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of the weight."""
        _refuse_gradients(x)
        product: Tensor = nm_linear(self.packed, x.reshape(-1, self.in_features), bias=self.bias)
        return product.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shape and pattern, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self.pattern}"


class SparseLinear24(nn.Module):
    """A Linear whose 2:4 weight runs on sparse tensor cores; forward only."""

    def __init__(self, dense: nn.Linear, example: Tensor) -> None:
        super().__init__()
        self.weight = tune(compress(dense.weight.detach()), example)
        self.bias = None if dense.bias is None else dense.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        _refuse_gradients(x)
        return linear24(x, self.weight, self.bias)


def accelerate(
    model: nn.Module, example_input: Tensor, *, backend: str = "auto", table: str | os.PathLike[str] | None = None
) -> Accelerated:
    """Replace every Linear with N:M weights by a sparse one where that is measured to be faster.

    Patterns are found in the weights themselves. Each different layer (pattern, shape, tokens, dtype) is timed once,
    on the activations of the example, against the dense layer.

    Args:
        model: stays as it is; the copy shares nothing with it.
        example_input: one batch of the size to be run; the result takes any other size too.
        backend: ``"cpu"`` (our kernels), ``"cslt"`` (2:4 on sparse tensor cores), or ``"auto"``, by the model's device.
        table: a JSON file of earlier timings on this machine, taken as measured and added to; None times everything.

    Returns:
        Model, report and the change of the output. Every Linear and Conv2d has a row with the reason for its back end.

    Raises:
        ValueError: for an unknown back end, one that cannot run here, or a table that is not one.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> accelerate(net, torch.randn(2, 8)).report.rows()[0]["reason"]
        'no N:M pattern: 0 % of its weights are zero'
    """
    device = next(model.parameters()).device
    backend = _choose(backend, device)
    timings = _Timings(table, machine(device), device)
    fast, seen = copy.deepcopy(model).eval(), _observe(model, example_input)
    rows = []
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            row, swap = _decide(name, module, seen.get(name), backend, timings)
            rows.append(row)
            if swap is not None:
                fast = _swap(fast, name, swap)
    timings.save()
    report = SpeedTable(machine(device), torch.get_num_threads(), BASELINE, tuple(rows))
    return Accelerated(fast, report, _difference(model, fast, example_input))


def find_pattern(weight: Tensor) -> Pattern | None:
    """The sparsest N:M that a (rows, columns) weight obeys, the smallest M among equals; None if it obeys none.

    Example:
        >>> str(find_pattern(torch.tensor([[1.0, 0, 0, 2, 0, 0, 3, 4]])))
        '2:4'
    """
    found = []
    for group in _GROUPS:
        if weight.shape[1] % group == 0:
            keep = max(int((weight != 0).reshape(len(weight), -1, group).sum(2).max()), 1)
            if keep < group:
                found.append(Pattern((keep, group)))
    return min(found, key=lambda pattern: (pattern.density, pattern.group), default=None)


class _Timings:
    """Median seconds (dense, sparse) by machine, back end, pattern, shape, tokens and dtype; optionally on disk."""

    def __init__(self, path: str | os.PathLike[str] | None, here: str, device: torch.device) -> None:
        self.path = None if path is None else Path(path)
        self.here, self.device = f"{here}, {torch.get_num_threads()} threads", device
        self.known: dict[str, list[float]] = {}
        if self.path is not None and self.path.exists():
            try:
                data = json.loads(self.path.read_text(encoding="utf-8"))
                self.known = {key: [float(dense), float(sparse)] for key, (dense, sparse) in data["timings"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.path}: not a table of timings ({error!r})") from None

    def measure(self, key: str, dense: Callable[[], object], sparse: Callable[[], object]) -> tuple[float, float]:
        key = f"{self.here}, {key}"
        if key not in self.known:
            with torch.inference_mode():
                self.known[key] = [timing.median for timing in interleave([dense, sparse], device=self.device)]
        dense_s, sparse_s = self.known[key]
        return dense_s, sparse_s

    def save(self) -> None:
        if self.path is not None:
            document = {"format": FORMAT, "kind": "timings", "timings": self.known}
            with atomic(self.path) as temporary:
                temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


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
    """The first input of every Linear, tokens by columns."""
    seen: dict[str, Tensor] = {}

    def note(name: str, columns: int, x: Tensor) -> None:
        seen.setdefault(name, x.reshape(-1, columns))

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: note(name, module.in_features, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with eval_mode(model):
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _decide(
    name: str, module: nn.Linear | nn.Conv2d, x: Tensor | None, backend: str, timings: _Timings
) -> tuple[SpeedRow, nn.Module | None]:
    """The row of one layer, and what takes its place."""
    reason, pattern = _unfit(module, x, backend)
    if reason or pattern is None or x is None or not isinstance(module, nn.Linear):
        return SpeedRow(name, False, "dense", None, None, None, reason), None
    sparse = SparseLinear(module, pattern) if backend == "cpu" else SparseLinear24(module, x)
    weight, bias = module.weight.detach(), module.bias
    key = f"{backend} {pattern} {tuple(weight.shape)} x {len(x)} {weight.dtype}"
    dense_s, sparse_s = timings.measure(key, lambda: functional.linear(x, weight, bias), lambda: sparse(x))
    gain = dense_s / sparse_s
    if gain < LEAST_GAIN:
        why = f"{pattern}, but the gain is below {LEAST_GAIN}"
        return SpeedRow(name, True, "dense", dense_s, sparse_s, gain, why), None
    return SpeedRow(name, True, backend, dense_s, sparse_s, gain, f"{pattern}, measured faster"), sparse


def _unfit(module: nn.Linear | nn.Conv2d, x: Tensor | None, backend: str) -> tuple[str, Pattern | None]:
    """Why a layer cannot run sparse, or the pattern it has."""
    if isinstance(module, nn.Conv2d):
        return "convolutions run dense: no sparse kernel yet", None
    if type(module).forward is not nn.Linear.forward or module._forward_hooks or module._forward_pre_hooks:
        return "a Linear with a forward of its own, or with hooks", None
    if x is None:
        return "the example does not call it", None
    if x.dtype != module.weight.dtype:
        return f"its input is {x.dtype}, its weight {module.weight.dtype}", None
    pattern = find_pattern(module.weight.detach())
    if pattern is None:
        share = float((module.weight == 0).double().mean())
        return f"no N:M pattern: {100 * share:.0f} % of its weights are zero", None
    if backend == "cpu":
        if module.weight.dtype not in (torch.float32, torch.bfloat16):
            return f"{module.weight.dtype}: the CPU kernels take float32 and bfloat16", None
    elif pattern.density > 0.5 or pattern.group > 4:
        return f"{pattern} is not 2:4", None
    elif reason := unsuitable(tuple(module.weight.shape), module.weight.dtype):
        return reason, None
    return "", pattern


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


def _refuse_gradients(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("accelerated layers have no gradients; train the model they were made from")
