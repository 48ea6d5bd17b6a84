"""Run a network piece by piece, so that pruning it layer by layer does not run the whole of it for every layer.

A network is cut into *segments*: repeated blocks that hand one tensor from each to the next. Activations are cached at
the current boundary. What lies before the first segment (and the whole network, where no chain of segments can be
proved, see :mod:`mpcore.models.proof`) is the *prefix*; what follows the last is the *suffix*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.batches import forward, layer_input, place, split
from mpcore.models.calibrate import Layer, batch_seed, input_rows


class _Reached(Exception):
    """Raised by a hook to end a forward pass where it has given what was wanted."""


class Unsound(RuntimeError):
    """The model is not the chain of its segments: what was computed by segments does not describe it."""


class Chain(tuple[str, ...]):
    """Names of a network's segments in call order, as :func:`mpcore.models.proof.find_segments` proves them.

    ``alone``: no segment is given anything but the activation; ``once``: layers called once in every forward pass.
    """

    alone: bool
    once: frozenset[str]

    def __new__(cls, names: Iterable[str] = (), *, alone: bool = False, once: Iterable[str] = ()) -> Chain:
        """Without ``once`` no pass ends early; without ``alone`` none is taken to."""
        chain = super().__new__(cls, names)
        chain.alone, chain.once = alone, frozenset(once)
        return chain


def tensor_of(output: Any) -> Tensor | None:
    """The tensor that a segment hands on: its output, or the first entry of a tuple."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _first_tensor(output: Any) -> Tensor:
    tensor = tensor_of(output)
    if tensor is None:
        raise Unsound(f"a segment returned {type(output).__name__}, wanted a tensor")
    return tensor


def with_tensor(output: Any, tensor: Tensor) -> Any:
    """``output`` with its first tensor replaced."""
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: tensor})
    return type(output)((tensor, *output[1:])) if isinstance(output, (tuple, list)) else tensor


class Path:
    """One model on the calibration batches, walked from its first layer to its last.

    With no segments every pass is a whole one, of the model as it stands.
    """

    def __init__(self, model: nn.Module, segments: Sequence[str], batches: Sequence[Any]) -> None:
        self.model, self.batches = model, batches
        self.segments = segments if isinstance(segments, Chain) else Chain(segments)
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
        taken = 0
        for index in range(len(self.batches)):
            with self._catch(layers, index, positions, seed) as found:
                self._outputs.append(self._run(index))
            self._rows.append({layer: self._joined(layer, calls) for layer, calls in found.items()})
            taken = max(taken, sum(rows.nbytes for rows in self._rows[-1].values()))
            if taken * len(self.batches) > most:
                self._rows, self._outputs = [], []
                return

    @torch.inference_mode()
    def rows(self, layer: str, index: int, *, positions: int, seed: int) -> Tensor:
        """Input rows of ``layer`` in batch ``index``, of all its calls; the layer must lie in the current stage.

        There are none where the batch does not lead to the layer.
        """
        if self._rows and layer in self._rows[index]:
            return self._rows[index][layer]
        end = layer in self.segments.once
        with self._catch([layer], index, positions, seed, end=end) as found, suppress(_Reached):
            self._run(index)
        return self._joined(layer, found[layer])

    def _joined(self, layer: str, calls: Sequence[Tensor]) -> Tensor:
        """The rows of all calls of a layer."""
        if len(calls) == 1:
            return calls[0]
        weight: Tensor = self.model.get_submodule(layer).weight  # type: ignore[assignment]
        return torch.cat(tuple(calls)) if calls else torch.zeros(0, weight[0].numel(), device=weight.device)

    @contextmanager
    def _catch(
        self, layers: Sequence[str], index: int, positions: int, seed: int, *, end: bool = False
    ) -> Iterator[dict[str, list[Tensor]]]:
        """Within the block, the input rows of every call of each of ``layers``; the first may ``end`` the pass."""
        found: dict[str, list[Tensor]] = {layer: [] for layer in layers}

        def hook(layer: str) -> Any:
            def catch(module: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                inputs = layer_input(args, kwargs)
                rows = input_rows(module, inputs, positions, batch_seed(seed, index))[0]
                found[layer].append(rows if end else rows.clone())  # what follows may work in place
                if end:
                    raise _Reached

            return catch

        handles = [
            self.model.get_submodule(layer).register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in layers
        ]
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
        if self.stage == 0:
            return self._whole(index)
        activation, output = self._inputs[index].clone(), self._output
        for name in self.segments[self.stage - 1 :]:
            args, kwargs = self._extras[name][index]
            output = self.model.get_submodule(name)(activation, *args, **kwargs)
            activation = _first_tensor(output)
        with relayed(self.model, self.segments, with_tensor(output, activation)):
            return self._whole(index)

    def _whole(self, index: int) -> Tensor:
        """A forward pass of the model, without a cache of its own where segments are run."""
        inputs = place(split(self.batches[index])[0], self.model)
        if not self.segments:
            return forward(self.model, inputs)
        with uncached(self.model):
            return forward(self.model, inputs)

    def _run(self, index: int) -> Any:
        """Forward pass of the current stage."""
        if self.stage == 0:
            return self._whole(index)
        if self.stage <= len(self.segments):
            name = self.segments[self.stage - 1]
            args, kwargs = self._extras[name][index]
            return self.model.get_submodule(name)(self._inputs[index].clone(), *args, **kwargs)
        with relayed(self.model, self.segments, with_tensor(self._output, self._inputs[index].clone())):
            return self._whole(index)

    def _enter_first(self) -> None:
        """Keep the first segment's input, and every segment's other arguments.

        Where segments are given nothing but the activation, batches are run no further than to the first segment.
        """
        self._inputs, alone = [], self.segments.alone
        for index in range(len(self.batches)):
            handles = [
                self.model.get_submodule(name).register_forward_pre_hook(
                    self._entry_hook(name, alone), with_kwargs=True
                )
                for name in self.segments[: 1 if alone else None]
            ]
            try:
                self._whole(index)
            except _Reached:
                pass
            finally:
                for handle in handles:
                    handle.remove()
            counts = [len(self._inputs), *([] if alone else [len(self._extras[name]) for name in self.segments])]
            if any(count != index + 1 for count in counts):
                raise Unsound(f"batch {index} does not lead through the segments once each")
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
def relayed(model: nn.Module, segments: Sequence[str], output: Any) -> Iterator[None]:
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


@contextmanager
def uncached(model: nn.Module) -> Iterator[bool]:
    """Within the block no configuration of a Hugging Face model asks for a cache of keys and values; whether one did.

    Decoders make one by default and hand it to every block, which adds to it each time it is run.
    """
    configs: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    caching = [config for config in configs if getattr(config, "use_cache", False) is True]
    try:
        for config in caching:
            config.use_cache = False
        yield bool(caching)
    finally:
        for config in caching:
            config.use_cache = True
