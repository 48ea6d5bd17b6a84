"""Prove that a network is a chain of segments on every calibration batch, so that it may be run piece by piece.

On each whole batch the modules are called once each in the same order, each is given the very tensor that the one
before it returned and nothing that could grow from run to run, and every layer is called within its own segment alone.
On the first samples of each batch, the activation that enters the first segment is moved by noise: every segment, run
by itself on what it was given then but with the other arguments of a pass without noise, must return what it returned
then, and so must the model from the last segment's output on. Nothing else then carries what a segment computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.batches import first, forward, place, split
from mpcore.models.segments import Chain, relayed, tensor_of, uncached, with_tensor

SAMPLES = 2
"""Samples of each batch on which segments are run one by one."""
NOISE = 0.5
"""Standard deviation of the noise on the activation, relative to the activation's own."""
ROUNDING = 64
"""Largest difference between two runs of the same segment, in units of rounding of the largest entry."""
FIXED = (type(None), bool, int, float, complex, str, bytes, slice, Enum, Tensor, torch.dtype, torch.device)
"""What a segment may be given beside the activation, alone or in tuples: nothing that could grow from run to run."""


@torch.inference_mode()
def find_segments(model: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> Chain:
    """The segments of ``model`` in call order, the finest chain that is proved on all ``batches``; may be empty.

    Candidates are members of a ModuleList or Sequential that hold a layer of ``names``. The model is run in evaluation
    mode, as it is given: once on every whole batch, and a few times on the first :data:`SAMPLES` samples of each.
    """
    candidates = _candidates(model, names)
    depth = {name: sum(name.startswith(f"{other}.") for other in candidates) for name in candidates}
    for level in sorted(set(depth.values()), reverse=True):
        chosen = [name for name in candidates if depth[name] == level]
        covered = [
            name for name in candidates if depth[name] < level and not any(c.startswith(f"{name}.") for c in chosen)
        ]
        chosen += [name for name in covered if not any(o.startswith(f"{name}.") for o in covered)]
        order = _call_order(model, chosen, batches[0]) if len(chosen) > 1 else []
        if order and all(_stands_alone(model, order, batch, 1 if k else 2) for k, batch in enumerate(batches)):
            with uncached(model):
                chain = _survey(model, order, names, batches)
            if chain is not None:
                return chain
    return _survey(model, [], names, batches) or Chain()


def _candidates(model: nn.Module, names: Sequence[str]) -> list[str]:
    modules = dict(model.named_modules())
    return [
        name
        for name, module in modules.items()
        if name
        and isinstance(modules[name.rpartition(".")[0]], (nn.ModuleList, nn.Sequential))
        and not isinstance(module, (nn.Linear, nn.Conv2d))
        and any(layer.startswith(f"{name}.") for layer in names)
    ]


def _samples(model: nn.Module, batch: Any) -> Any:
    return place(first(split(batch)[0], SAMPLES), model)


def _call_order(model: nn.Module, chosen: Sequence[str], batch: Any) -> list[str]:
    """The chosen modules in call order, or none if they are not called once each."""
    calls: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _module, _args, name=name: calls.append(name))
        for name in chosen
    ]
    try:
        forward(model, _samples(model, batch))
    finally:
        for hook in hooks:
            hook.remove()
    return calls if sorted(calls) == sorted(chosen) else []


class _Watch:
    """What the segments of ``order`` are given and return during one forward pass, and where ``layers`` are called.

    ``chained`` says whether one tensor went through them in order. With ``noise`` the first is given a moved tensor.
    With ``keep`` copies of all entries are kept, and the output's tensor at last.
    """

    def __init__(
        self,
        model: nn.Module,
        order: Sequence[str],
        layers: Sequence[str] = (),
        *,
        noise: bool = False,
        keep: bool = False,
    ) -> None:
        self.model, self.order, self.layers, self.noise, self.keep = model, order, layers, noise, keep
        self.entries: list[Tensor] = []
        self.extras: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.output: Any = None
        self.calls: Counter[str] = Counter()
        self.alone = True
        self._sound, self._entered, self._inside = True, 0, ""
        self._last: Tensor | None = None

    @property
    def chained(self) -> bool:
        return self._sound and self._entered == len(self.order)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        handles: list[Any] = []
        for name in self.order:
            segment = self.model.get_submodule(name)
            handles.append(segment.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(segment.register_forward_hook(self._leave))
        for name in self.layers:
            handles.append(self.model.get_submodule(name).register_forward_pre_hook(self._call(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entry = args[0] if args and isinstance(args[0], Tensor) and args[0].is_floating_point() else None
            expected = self.order[self._entered] if self._entered < len(self.order) else None
            others = (*args[1:], *kwargs.values())
            handed_on = self._entered == 0 or entry is self._last
            if entry is None or name != expected or self._inside or not handed_on or not all(map(_fixed, others)):
                self._sound = False
                return None
            self._entered, self._inside, self.alone = self._entered + 1, name, self.alone and not others
            if self.noise and self._entered == 1:
                entry = _moved(entry)
            if self.keep:
                self.entries.append(entry.clone())
                self.extras.append((args[1:], kwargs))
            return (entry, *args[1:]), kwargs

        return hook

    def _leave(self, _: nn.Module, _args: Any, output: Any) -> None:
        self._inside, self._last = "", tensor_of(output)
        self._sound = self._sound and self._last is not None
        if self.keep and self._last is not None and self._entered == len(self.order):
            self.output = with_tensor(output, self._last.clone())

    def _call(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any) -> None:
            self.calls[name] += 1
            if self._inside:
                self._sound = self._sound and name.startswith(f"{self._inside}.")
            else:  # a layer between the segments, or of one of them
                between = 0 < self._entered < len(self.order)
                self._sound = self._sound and not between and not any(name.startswith(f"{s}.") for s in self.order)

        return hook


def _fixed(value: Any) -> bool:
    return all(map(_fixed, value)) if isinstance(value, tuple) else isinstance(value, FIXED)


def _moved(activation: Tensor) -> Tensor:
    noise = torch.randn(activation.shape, generator=torch.Generator().manual_seed(0)).to(activation)
    spread = activation.float().std(correction=0)
    scale = spread if bool(torch.isfinite(spread) & (spread > 0)) else torch.ones_like(spread)
    return activation + noise * (NOISE * scale).to(activation)


def _survey(model: nn.Module, order: Sequence[str], names: Sequence[str], batches: Sequence[Any]) -> Chain | None:
    """The chain of ``order`` if every whole batch goes through it, and which layers are called once."""
    once, alone = set(names), True
    for batch in batches:
        watch = _Watch(model, order, names)
        with watch():
            forward(model, place(split(batch)[0], model))
        if not watch.chained and order:
            return None
        once &= {name for name, calls in watch.calls.items() if calls == 1}
        alone = alone and watch.alone
    return Chain(order, alone=alone, once=once)


def _stands_alone(model: nn.Module, order: Sequence[str], batch: Any, times: int) -> bool:
    """Whether each segment, run by itself, does what it does within the model, and so does what follows the last."""
    inputs = _samples(model, batch)
    moved, still = _Watch(model, order, noise=True, keep=True), _Watch(model, order, keep=True)
    with uncached(model) as caching:
        with moved():
            answer = forward(model, inputs)
        with still():
            unmoved = forward(model, inputs)
        if not (moved.chained and still.chained):
            return False
        end = tensor_of(moved.output)
        assert end is not None
        with relayed(model, order, with_tensor(still.output, end.clone())):
            if not _same(forward(model, inputs), answer):
                return False
        if not _replayed(model, order, moved, still, end, times):
            return False
    return not caching or _same(forward(model, inputs), unmoved)


def _replayed(model: nn.Module, order: Sequence[str], moved: _Watch, still: _Watch, end: Tensor, times: int) -> bool:
    """Run the segments from the last to the first, so that none finds what the pass with noise left, and repeat it."""
    ends = [*moved.entries[1:], end]
    for name, entry, (args, kwargs), wanted in reversed([*zip(order, moved.entries, still.extras, ends, strict=True)]):
        for _ in range(times):
            found = tensor_of(model.get_submodule(name)(entry.clone(), *args, **kwargs))
            if found is None or not _same(found, wanted):
                return False
    return True


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for rounding."""
    if torch.equal(found, wanted):
        return True
    if found.shape != wanted.shape or not found.is_floating_point():
        return False
    unit = torch.finfo(found.dtype).eps * wanted.abs().max()
    return bool((found - wanted).abs().max() <= ROUNDING * unit)
