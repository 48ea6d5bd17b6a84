"""Prove that a network is a chain of segments on every calibration batch, so that it may be run piece by piece.

On each whole batch the modules are called once each in the same order, each is given the very tensor that the one
before it returned and nothing that could grow from run to run, and every layer is called within its own segment alone.
On the first samples of each batch, the activation that enters the first segment is moved by noise: every segment, run
by itself on what it was given then but with the other arguments of a pass without noise, must return what it returned
then, and so must the model from the last segment's output on. Nothing else then carries what a segment computed.

Whether rows of a layer's input belong to fixed places of fixed samples is shown the same way, by :func:`find_routed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.batches import first, forward, layer_input, place, size, split, take, tensors_of
from mpcore.models.segments import Chain, relayed, tensor_of, uncached, with_tensor

SAMPLES = 2
"""Samples of each batch on which segments are run one by one."""
REORDERED = 4
"""Samples of each batch that are put in another order to see which rows of a layer follow them."""
REORDERING = 1e-2
"""Largest difference between what two orders give for one sample, relative to the largest entry."""
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


@torch.inference_mode()
def find_routed(model: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> frozenset[str]:
    """Layers of which the data choose the rows, as a mixture of experts does: two models may choose differently.

    All others have as many rows on every batch of one shape, and follow its first :data:`REORDERED` samples: with these
    in reverse order the rows come in reverse order of the samples, or they are the same whatever the samples are.
    """
    routed: set[str] = set()
    lengths: dict[Any, list[int]] = {}
    for batch in batches:
        inputs = place(first(split(batch)[0], REORDERED), model)
        count = size(inputs)
        given, back = (
            _projections(model, names, take(inputs, order)) for order in ([*range(count)], [*reversed(range(count))])
        )
        shape = tuple(tensor.shape for tensor in tensors_of(inputs))
        doubtful = []
        for name in names:
            found = [len(rows) for rows in given[name]]
            if lengths.setdefault((name, shape), found) != found:
                routed.add(name)
            elif not _reversed(given[name], back[name], count):
                doubtful.append(name)
        if doubtful:
            last = _projections(model, doubtful, take(inputs, [count - 1] * count))
            routed.update(name for name in doubtful if not _all_close(last[name], given[name]))
    return frozenset(routed)


def _projections(model: nn.Module, names: Sequence[str], inputs: Any) -> dict[str, list[Tensor]]:
    """For every call of each layer one number per row of its input: the row's product with a random vector."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Any:
        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = layer_input(args, kwargs)
            rows = rows.movedim(-3, -1) if isinstance(module, nn.Conv2d) else rows
            vector = torch.randn(rows.shape[-1], generator=torch.Generator().manual_seed(0)).to(rows.device)
            found[name].append((rows.double() @ vector.double()).to(rows.dtype).flatten())

        return catch

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    try:
        forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _all_close(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return len(found) == len(wanted) and all(map(_close, found, wanted))


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for what rounding becomes on its way through a deep network; rows of other samples differ by more."""
    if found.shape != wanted.shape or not len(wanted):
        return found.shape == wanted.shape
    loose = max(REORDERING, ROUNDING * torch.finfo(found.dtype).eps)
    return bool((found - wanted).abs().max() <= loose * wanted.abs().max())


def _reversed(calls: Sequence[Tensor], back: Sequence[Tensor], count: int) -> bool:
    """Whether the rows ``back`` are those of ``calls`` with the samples reversed: in each call, or in all together."""
    if len(calls) == len(back) and all(map(_turned, calls, back, [count] * len(calls))):
        return True
    return _turned(torch.cat(tuple(calls)), torch.cat(tuple(back)), count) if calls and back else False


def _turned(rows: Tensor, back: Tensor, count: int) -> bool:
    """:func:`_reversed` for one call, wherever the axis of the ``count`` samples lies among those of the rows."""
    if len(rows) != len(back) or len(rows) % count:
        return False
    share = len(rows) // count
    outer = [size for size in range(1, share + 1) if share % size == 0]
    return not share or any(_close(back, rows.reshape(size, count, -1).flip(1).flatten()) for size in outer)


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
