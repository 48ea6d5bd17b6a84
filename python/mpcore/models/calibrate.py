"""First and second moments of every layer's inputs, streamed over the calibration batches by hooks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcore.models.apply import Matrix, as_matrix, layer_of
from mpcore.models.batches import check_logits, forward, layer_input, place, split
from mpcore.models.evaluate import keep_modes

Layer = nn.Linear | nn.Conv2d
TOLERANCE = 1e-3
"""Largest relative difference between a layer's output and W x + b for the layer to count as linear in its input."""


@dataclass(frozen=True)
class Moments:
    """Of the input rows x (columns,) of one layer, in the matrix view: E x, E x^2, and E x x' if asked for; float64."""

    count: int
    mean: Matrix
    square: Matrix
    gram: Matrix | None = None


@dataclass(frozen=True)
class CalibrationStats(Mapping[str, Moments]):
    """Moments by layer name, in the order the layers are called.

    ``norms`` names the BatchNorm that alone reads a layer's output, where in every forward pass the one is called once
    and the other once; ``refused`` says why a layer has no moments.
    """

    moments: dict[str, Moments]
    norms: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Moments:
        return self.moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.moments)

    def __len__(self) -> int:
        return len(self.moments)

    def tensors(self) -> dict[str, Matrix]:
        """What calibration.safetensors holds: ``<layer>.mean`` and ``<layer>.square``, float64."""
        pairs = ((name, part, getattr(m, part)) for name, m in self.moments.items() for part in ("mean", "square"))
        return {f"{name}.{part}": value for name, part, value in pairs}

    def few_rows(self) -> str:
        """In words, which layers were fed fewer rows than they have columns: their weights are fitted to chance."""
        few = {name: m for name, m in self.moments.items() if 0 < m.count < len(m.mean)}
        if not few:
            return ""
        name, worst = min(few.items(), key=lambda item: item[1].count / len(item[1].mean))
        layers = "1 layer is" if len(few) == 1 else f"{len(few)} layers are"
        return f"{layers} fed fewer rows than columns ({name}: {worst.count} rows for {len(worst.mean)} columns)"


class Accumulator:
    """Running sums of the moments; products of a batch in float32, sums over batches in float64.

    The mean of the first rows is taken off all of them before they are multiplied: where an input varies little around
    a large mean, its variance would else be less than the rounding of its square.
    """

    def __init__(self, columns: int, *, gram: bool) -> None:
        self.count = 0
        self.centre = torch.zeros(columns, dtype=torch.float64)
        self.sum = torch.zeros(columns, dtype=torch.float64)
        self.square = torch.zeros(columns, dtype=torch.float64)
        self.gram = torch.zeros(columns, columns, dtype=torch.float64) if gram else None

    def add(self, rows: Tensor) -> Tensor:
        """Take in rows (n, columns), float32, and return them as deviations from the centre."""
        if not self.count and len(rows):
            self.centre = rows.mean(0).double().cpu()
        self.count += len(rows)
        rows = rows - self.centre.to(rows)
        self.sum += rows.sum(0).double().cpu()
        if self.gram is None:
            self.square += rows.square().sum(0).double().cpu()
        else:
            self.gram += (rows.T @ rows).double().cpu()
        return rows

    def moments(self) -> Moments:
        """The means so far."""
        mean = self.centre + self.sum / self.count
        if self.gram is None:
            square = self.square / self.count + mean.square() - (mean - self.centre).square()
            return Moments(self.count, mean.numpy(), square.numpy())
        gram = about_zero(self.gram / self.count, (mean, mean), (self.centre, self.centre)).numpy()
        return Moments(self.count, mean.numpy(), np.diagonal(gram).copy(), gram)


def about_zero(product: Tensor, means: tuple[Tensor, Tensor], centres: tuple[Tensor, Tensor]) -> Tensor:
    """E x z' from E (x - a)(z - b)', the means of x and z and their centres (a, b)."""
    (x, z), (a, b) = means, centres
    return product + torch.outer(x, z) - torch.outer(x - a, z - b)


def input_rows(module: Layer, inputs: Tensor, positions: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Rows (n, columns) that the layer multiplies its matrix with, and which output positions they belong to.

    A convolution gives at most ``positions`` random output positions of each image, the same for every image of the
    batch; so does a Linear on a map (N, H, W, C). ``None`` for the positions means all, in order.
    """
    inputs = inputs.detach()  # a layer may be fed a view of a parameter
    if isinstance(module, nn.Linear):
        tokens = (
            inputs.reshape(len(inputs), -1, inputs.shape[-1])
            if inputs.ndim == 4
            else inputs.reshape(1, -1, inputs.shape[-1])
        )
        chosen = _choose(tokens.shape[1], positions, seed) if inputs.ndim == 4 else None
        tokens = tokens if chosen is None else tokens[:, chosen]
        return tokens.reshape(-1, inputs.shape[-1]).float(), chosen
    inputs = inputs if inputs.ndim == 4 else inputs[None]  # one image without a batch axis
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if any(padding):
        inputs = functional.pad(inputs, padding, mode=mode)
    if module.kernel_size == (1, 1):
        maps = inputs[:, :, :: module.stride[0], :: module.stride[1]].flatten(2)
    else:
        maps = functional.unfold(inputs, module.kernel_size, module.dilation, 0, module.stride)
    chosen = _choose(maps.shape[2], positions, seed)
    maps = maps if chosen is None else maps[:, :, chosen]
    taps = module.kernel_size[0] * module.kernel_size[1]
    columns = maps.reshape(len(maps), -1, taps, maps.shape[2]).permute(0, 3, 2, 1)  # (image, position, tap, channel)
    return columns.reshape(-1, maps.shape[1]).float(), chosen


def _choose(length: int, positions: int, seed: int) -> Tensor | None:
    if length <= positions:
        return None
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:positions]


def calibrate(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Any],
    *,
    positions: int = 196,
    seed: int = 0,
    gram: bool = False,
) -> CalibrationStats:
    """Moments of the inputs of the named layers over all batches, the model in evaluation mode.

    A layer is refused, with the reason, when it is never called or when its output is not W x + b of its input in its
    first call (a forward method of its own).

    Args:
        model: any module whose forward takes the batches.
        names: module names of Linear and Conv2d layers.
        batches: ``inputs`` or ``(inputs, targets)``.
        positions: cap on the positions of a map, per image.
        seed: of the choice of positions.
        gram: keep the whole E x x', columns^2 float64 per layer.

    Raises:
        ValueError: for a batch that the model cannot read or answers with no logits, or a nested tensor.
    """
    collector = _Collector(model, names, positions=positions, gram=gram)
    # Not in inference mode: its tensors do not count their versions.
    with torch.inference_mode(mode=False), torch.no_grad(), keep_modes(model), collector:
        model.eval()
        for index, batch in enumerate(batches):
            collector.begin(batch_seed(seed, index))
            where, inputs = f"calibration batch {index}", place(split(batch)[0], model)
            with _explained(inputs, where):
                logits = forward(model, inputs)
            check_logits(logits, where)
    stats = collector.stats()
    if not stats.norms:
        return stats
    return dataclasses.replace(stats, norms=_proven(model, stats.norms, split(batches[0])[0]))


@torch.no_grad()
def _proven(model: nn.Module, norms: Mapping[str, str], inputs: Any) -> dict[str, str]:
    """The BatchNorms that take off what is added to their layers: no other module reads these layers' outputs.

    A constant per channel is added to a layer's outputs and to the running mean of its norm; the logits must stay. All
    are tried at once first, and one by one only if that changes the logits.
    """
    inputs = place(inputs, model)

    def logits(pairs: Mapping[str, str]) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(keep_modes(model))
            model.eval()
            for layer, norm in pairs.items():
                stack.enter_context(_added(layer_of(model, layer), model.get_submodule(norm)))
            return forward(model, inputs).double()

    expected = logits({})
    allowed = max(TOLERANCE, 16 * torch.finfo(next(model.parameters()).dtype).eps) * expected.abs().max()

    def free(pairs: Mapping[str, str]) -> bool:
        return bool((logits(pairs) - expected).abs().max() <= allowed)

    return dict(norms) if free(norms) else {layer: norm for layer, norm in norms.items() if free({layer: norm})}


@contextmanager
def _added(layer: Layer, norm: nn.Module) -> Iterator[None]:
    """Within the block the layer's outputs are a deviation larger, and so is what the norm takes off."""
    mean, deviation = norm.get_buffer("running_mean"), norm.get_buffer("running_var").sqrt()
    before = mean.clone()

    def add(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        across = deviation[:, None, None] if isinstance(module, nn.Conv2d) else deviation
        return output + across.to(output.dtype)

    handle = layer.register_forward_hook(add)
    mean.add_(deviation)
    try:
        yield
    finally:
        handle.remove()
        mean.copy_(before)


@contextmanager
def _explained(inputs: Any, where: str) -> Iterator[None]:
    """Within the block, an error of torch says so if it comes from integers where real numbers are wanted."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(inputs, Tensor) or inputs.is_floating_point() or "type" not in str(error):
            raise
        raise ValueError(
            f"{where} is a {inputs.dtype} tensor of shape {tuple(inputs.shape)}, which the model cannot read "
            f"({error}); images are wanted as floating-point numbers, in the dtype of the model"
        ) from error


def batch_seed(seed: int, index: int) -> int:
    """Seed of the positions of batch ``index``: the dense and the pruned path must agree on it."""
    return (seed * 1_000_003 + index) % 2**63


class _Collector:
    """Forward hooks on the named layers and on every BatchNorm, removed on exit."""

    def __init__(self, model: nn.Module, names: Sequence[str], *, positions: int, gram: bool) -> None:
        self.model, self.names, self.positions, self.gram = model, names, positions, gram
        self.seed = self.passes = 0
        self.sums: dict[str, Accumulator] = {}
        self.refused: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._meetings: Counter[tuple[str, str]] = Counter()
        self._last: tuple[str, Any, int] = ("", None, -1)  # layer, its output, the version of that
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            if name in self.names:
                self._handles.append(module.register_forward_hook(self._layer_hook(name), with_kwargs=True))
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is not None:
                self._handles.append(module.register_forward_pre_hook(self._norm_hook(name), with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = ("", None, -1)

    def begin(self, seed: int) -> None:
        """A forward pass follows, of which the positions are drawn by ``seed``."""
        self.seed, self.passes, self._last = seed, self.passes + 1, ("", None, -1)

    def _layer_hook(self, name: str) -> Any:
        def hook(module: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            self._calls[name] += 1
            self._last = (name, output, _version(output))
            if name not in self.refused:
                self._take_in(name, module, args, kwargs, output)

        return hook

    def _take_in(self, name: str, module: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Add one call to the moments of a layer, or refuse the layer."""
        try:
            inputs = layer_input(args, kwargs)
        except TypeError as error:
            self.refused[name] = f"it is {error}"
            return
        if inputs.is_nested:
            raise ValueError(
                f"layer {name}: is fed a nested tensor, as nn.TransformerEncoder makes of padded samples; build the "
                "encoder with enable_nested_tensor=False, or set its attribute use_nested_tensor = False"
            )
        rows, chosen = input_rows(module, inputs, self.positions, self.seed)
        if not len(rows):
            return  # an expert that no sample was sent to
        if name not in self.sums:
            if not _is_linear(module, rows, output, chosen):
                self.refused[name] = "its output is not W x + b of its input (a forward method of its own)"
                return
            self.sums[name] = Accumulator(rows.shape[1], gram=self.gram)
        self.sums[name].add(rows)

    def _norm_hook(self, norm: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls[norm] += 1
            name, output, version = self._last
            # What works in place returns the same tensor, of a later version.
            if version >= 0 and layer_input(args, kwargs) is output and _version(output) == version:
                self._meetings[name, norm] += 1

        return hook

    def stats(self) -> CalibrationStats:
        moments = {name: total.moments() for name, total in self.sums.items()}
        silent = {
            name: "never called on the calibration data, or read without calling it"
            for name in self.names
            if name not in moments
        }
        norms = {
            name: norm
            for (name, norm), times in self._meetings.items()
            if times == self._calls[name] == self._calls[norm] == self.passes
        }
        return CalibrationStats(moments, norms, {**silent, **self.refused})


def _version(output: Any) -> int:
    """How often a tensor has been written to; -1 where torch does not count it."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else -1


def _is_linear(module: Layer, rows: Tensor, output: Any, chosen: Tensor | None) -> bool:
    """Whether the output at the chosen positions is the matrix view times the rows, plus the bias."""
    matrix = torch.from_numpy(as_matrix(module.weight)).to(rows)
    if not isinstance(output, Tensor) or rows.shape[1] != matrix.shape[1]:
        return False
    expected = rows @ matrix.T
    if module.bias is not None:
        expected += module.bias.float()
    if isinstance(module, nn.Conv2d):
        output = (output if output.ndim == 4 else output[None]).flatten(2).transpose(1, 2)
    elif output.ndim == 4:
        output = output.reshape(len(output), -1, output.shape[-1])
    if chosen is not None:
        output = output[:, chosen]
    output = output.reshape(-1, expected.shape[1]).float()
    if output.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    loose = TOLERANCE if module.weight.dtype == torch.float32 else 20 * TOLERANCE
    return bool((output - expected).abs().max() <= loose * scale)
