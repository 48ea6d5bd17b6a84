"""Run a network piece by piece, so that pruning it layer by layer does not run the whole of it for every layer.

A network is cut into *segments*: repeated blocks that hand one tensor from each to the next. Activations are cached at
the current boundary. What lies before the first segment (and the whole network, where no chain of segments can be
proved) is the *prefix*; what follows the last is the *suffix*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.batches import first, forward, place, split
from mpcore.models.calibrate import Layer, batch_seed, input_rows


class _Reached(Exception):
    """Raised by a hook to end a forward pass where it has given what was wanted."""


def find_segments(model: nn.Module, names: Sequence[str], batch: Any) -> list[str]:
    """Names of the segments of ``model`` in call order, the finest chain that one forward pass proves; may be empty.

    Candidates are members of a ModuleList or Sequential that hold a layer of ``names``. A chain is proved if each is
    called once and receives, as its first argument, the very tensor that the one before it returned, and if the
    model's output depends on the last one alone.
    """
    candidates = _candidates(model, names)
    depth = {name: sum(name.startswith(f"{other}.") for other in candidates) for name in candidates}
    for level in sorted(set(depth.values()), reverse=True):
        chosen = [name for name in candidates if depth[name] == level]
        covered = [
            name for name in candidates if depth[name] < level and not any(c.startswith(f"{name}.") for c in chosen)
        ]
        chosen += [name for name in covered if not any(o.startswith(f"{name}.") for o in covered)]
        ordered = _proved_chain(model, chosen, batch)
        if len(ordered) > 1:
            return ordered
    return []


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


def _proved_chain(model: nn.Module, chosen: list[str], batch: Any) -> list[str]:
    """The chosen modules in call order if they hand one tensor on, else an empty list."""
    calls: list[tuple[str, Any, Any]] = []

    def hook(name: str) -> Any:
        return lambda _, args, output: calls.append((name, args[0] if args else None, output))

    inputs = place(first(split(batch)[0], 2), model)
    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in chosen]
    try:
        with torch.inference_mode():
            expected = forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    order = [name for name, _, _ in calls]
    if not order or sorted(order) != sorted(chosen) or any(_tensor(output) is None for _, _, output in calls):
        return []
    if any(_tensor(output) is not entry for (_, _, output), (_, entry, _) in pairwise(calls)):
        return []
    with torch.inference_mode(), _relayed(model, order, calls[-1][2]):
        return order if torch.equal(forward(model, inputs), expected) else []


def _tensor(output: Any) -> Tensor | None:
    """The tensor that a segment hands on: its output, or the first entry of a tuple."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _first_tensor(output: Any) -> Tensor:
    tensor = _tensor(output)
    if tensor is None:
        raise RuntimeError(f"a segment returned {type(output).__name__}, wanted a tensor")
    return tensor


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    """``output`` with its first tensor replaced."""
    return type(output)((tensor, *output[1:])) if isinstance(output, (tuple, list)) else tensor


class Path:
    """One model on the calibration batches, walked from its first layer to its last."""

    def __init__(self, model: nn.Module, segments: Sequence[str], batches: Sequence[Any]) -> None:
        self.model, self.segments, self.batches = model, list(segments), batches
        self.stage = 0  # 0: prefix, k: segment k - 1, len(segments) + 1: suffix
        self._inputs: list[Tensor] = []  # first argument of the current segment, one per batch
        self._output: Any = None  # as the last segment returned it, to copy its structure
        self._extras: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = defaultdict(list)
        self._rows: list[dict[str, Tensor]] = []  # of the current segment's layers, one per batch, if it was run ahead
        self._outputs: list[Any] = []  # of the current segment, one per batch, if it was run ahead

    @torch.inference_mode()
    def run_ahead(self, layers: Sequence[str], *, positions: int, seed: int, most: int) -> None:
        """Run the current segment once, for the :meth:`rows` of all its ``layers`` and for :meth:`advance`.

        Only right for weights that stay as they are. Where the rows take more than ``most`` bytes, and outside the
        segments, nothing is kept, and the stage is run again whenever something of it is wanted.
        """
        if not 1 <= self.stage <= len(self.segments):
            return
        for index in range(len(self.batches)):
            with self._catch(layers, index, positions, seed) as found:
                self._outputs.append(self._run(index))
            self._rows.append(found)
            if sum(rows.nbytes for rows in self._rows[0].values()) * len(self.batches) > most:
                self._rows, self._outputs = [], []
                return

    @torch.inference_mode()
    def rows(self, layer: str, index: int, *, positions: int, seed: int) -> Tensor:
        """Input rows of ``layer`` in batch ``index``; the layer must lie in the current stage."""
        if self._rows and layer in self._rows[index]:
            return self._rows[index][layer]
        with self._catch([layer], index, positions, seed, end=True) as found, suppress(_Reached):
            self._run(index)
        if not found:
            raise RuntimeError(f"layer {layer}: not reached in stage {self.stage}")
        return found[layer]

    @contextmanager
    def _catch(
        self, layers: Sequence[str], index: int, positions: int, seed: int, *, end: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Within the block, the input rows of the first call of each of ``layers``; it may ``end`` the pass."""
        found: dict[str, Tensor] = {}

        def hook(layer: str) -> Any:
            def catch(module: Layer, args: tuple[Tensor, ...]) -> None:
                if layer not in found:  # cloned, since what follows may work in place
                    rows = input_rows(module, args[0], positions, batch_seed(seed, index))[0]
                    found[layer] = rows if end else rows.clone()
                if end:
                    raise _Reached

            return catch

        handles = [self.model.get_submodule(layer).register_forward_pre_hook(hook(layer)) for layer in layers]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def advance(self) -> None:
        """Walk to the next stage with the weights as they are now."""
        if self.stage == 0 and self.segments:
            self._enter_first()
        elif self.stage <= len(self.segments):
            for index in range(len(self.batches)):
                self._output = self._outputs[index] if self._outputs else self._run(index)
                self._inputs[index] = _first_tensor(self._output)
        self._rows, self._outputs = [], []
        self.stage += 1

    @torch.inference_mode()
    def output(self, index: int) -> Tensor:
        """The model's output on batch ``index``, computed from the current stage on."""
        inputs = place(split(self.batches[index])[0], self.model)
        if self.stage == 0:
            return forward(self.model, inputs)
        activation, handed_on = self._inputs[index].clone(), self._output
        for name in self.segments[self.stage - 1 :]:
            args, kwargs = self._extras[name][index]
            handed_on = self.model.get_submodule(name)(activation, *args, **kwargs)
            activation = _first_tensor(handed_on)
        with _relayed(self.model, self.segments, _with_tensor(handed_on, activation)):
            return forward(self.model, inputs)

    def _run(self, index: int) -> Any:
        """Forward pass of the current stage."""
        if 1 <= self.stage <= len(self.segments):
            name = self.segments[self.stage - 1]
            args, kwargs = self._extras[name][index]
            return self.model.get_submodule(name)(self._inputs[index].clone(), *args, **kwargs)
        inputs = place(split(self.batches[index])[0], self.model)
        if self.stage == 0:
            return forward(self.model, inputs)
        with _relayed(self.model, self.segments, _with_tensor(self._output, self._inputs[index].clone())):
            return forward(self.model, inputs)

    def _enter_first(self) -> None:
        """Keep the first segment's input, and every segment's other arguments.

        Where the first batch shows that segments are given nothing but the activation, later batches are not run any
        further than to the first segment.
        """
        self._inputs, alone = [], False
        for batch in self.batches:
            entered = self.segments[:1] if alone else self.segments
            handles = [
                self.model.get_submodule(name).register_forward_pre_hook(
                    self._entry_hook(name, alone), with_kwargs=True
                )
                for name in entered
            ]
            try:
                forward(self.model, place(split(batch)[0], self.model))
            except _Reached:
                pass
            finally:
                for handle in handles:
                    handle.remove()
            alone = alone or not any(args or kwargs for extras in self._extras.values() for args, kwargs in extras)
        if alone:
            self._extras = {name: [((), {})] * len(self.batches) for name in self.segments}

    def _entry_hook(self, name: str, alone: bool) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name == self.segments[0]:
                self._inputs.append(args[0].clone())
            if alone:
                raise _Reached
            self._extras[name].append((args[1:], kwargs))

        return hook


@contextmanager
def _relayed(model: nn.Module, segments: Sequence[str], output: Any) -> Iterator[None]:
    """Within the block the segments are not run: each returns ``output``, the cached output of the last one."""
    modules = [model.get_submodule(name) for name in segments]
    own = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = lambda *_args, **_kwargs: output
        yield
    finally:
        for module, forward_before in zip(modules, own, strict=True):
            del module.forward
            if forward_before is not None:
                module.forward = forward_before
