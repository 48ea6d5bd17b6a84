"""Multiply-accumulates of one sample: what a model computes, and what its N:M patterns leave of it.

Counted are Linear and Conv2d layers, dense or accelerated, by hooks, and the two products of attention, QK' and
(softmax) V, of timm's Attention and WindowAttention. Norms, activations and softmax are not. A layer whose weights keep
to a pattern counts N/M of its products; this is what hardware for the pattern executes, not a running time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from mpcore.models import tome
from mpcore.models.batches import layer_input
from mpcore.models.eligible import layer_pattern
from mpcore.models.evaluate import keep_modes
from mpcore.models.outputs import check_example
from mpcore.models.sparse_layers import Sparse, SparseConv2d, SparseLinear, SparseLinear24
from mpcore.records import Pattern

Convention = Literal["exact", "paper"]
Layer = nn.Linear | nn.Conv2d | SparseLinear | SparseConv2d | SparseLinear24
Counted = Layer | Attention | WindowAttention
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "head_dim", "head_size")
"""Attributes by which a module is known for attention."""


@dataclass(frozen=True)
class LayerMacs:
    """One layer, per sample: ``dense`` products at the positions it saw, ``macs`` of them left by its pattern."""

    name: str
    kind: str  # "linear" | "conv2d" | "attention"
    dense: int
    macs: int
    pattern: Pattern | None


@dataclass(frozen=True)
class MacReport:
    """Multiply-accumulates per sample.

    ``baseline`` is the same model with all weights and all tokens; ``reduction`` = 1 - total / baseline.
    """

    convention: str
    total: int
    baseline: int
    layers: tuple[LayerMacs, ...]
    uncounted: tuple[str, ...]
    """Linear and Conv2d layers never called; attention and weights, such as Conv1d, of kinds that are not counted."""

    @property
    def attention(self) -> int:
        """Products between tokens: QK' and (softmax) V."""
        return sum(layer.macs for layer in self.layers if layer.kind == "attention")

    @property
    def reduction(self) -> float:
        """Share of the baseline that is not computed."""
        return 1 - self.total / self.baseline

    @property
    def speedup_bound(self) -> float:
        """Baseline / total: what a machine limited by these products alone would gain."""
        return self.baseline / self.total


def macs(
    model: nn.Module,
    example_input: Tensor,
    convention: Convention = "exact",
    *,
    patterns: Mapping[str, str | tuple[int, int] | Pattern] | None = None,
) -> MacReport:
    """Count the multiply-accumulates of one sample.

    Args:
        model: any module; run once in evaluation mode without gradients (twice if it merges tokens), on any device,
            ``meta`` included.
        example_input: (batch, ...) input of the model.
        convention: where tokens merge (:mod:`mpcore.models.tome`), "exact" counts the MLP behind the merge with the
            tokens that are left; "paper" counts the whole block with the tokens that enter it, as Berlyand et al. do.
        patterns: layer name -> pattern to count with; None reads the patterns off the zeros of the weights.

    Raises:
        TypeError: if ``example_input`` is no tensor.
        ValueError: for another convention, a name that is no counted layer, an empty batch, or a model in which
            nothing is counted.

    Example:
        >>> report = macs(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), torch.zeros(1, 3, 4, 4))
        >>> report.total == 4 * 4 * 9 * 3 * 8
        True
    """
    if convention not in ("exact", "paper"):
        raise ValueError(f"convention: {convention!r}, wanted 'exact' or 'paper'")
    check_example(example_input)
    if not len(example_input):
        raise ValueError(f"example_input: an empty batch, shape {tuple(example_input.shape)}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Counted)}
    found = (
        {name: _pattern_of(module) for name, module in layers.items()} if patterns is None else _given(patterns, layers)
    )
    dense = _count(model, layers, example_input, convention)
    if not dense:
        raise ValueError(f"model: {type(model).__name__} runs no Linear, Conv2d or attention to count")
    baseline = sum(dense.values())
    if any(tome.merged_per_block(model)):
        with tome.suspended(model):
            baseline = sum(_count(model, layers, example_input, convention).values())
    rows = tuple(_row(name, layers[name], count, found.get(name)) for name, count in dense.items())
    silent = tuple(name for name, module in layers.items() if name not in dense and isinstance(module, Layer))
    others = *_other_attention(model), *_other_weights(model)
    return MacReport(convention, sum(row.macs for row in rows), baseline, rows, (*silent, *dict.fromkeys(others)))


def _row(name: str, module: nn.Module, dense: int, pattern: Pattern | None) -> LayerMacs:
    label = "linear" if isinstance(module, Layer) else "attention"
    label = "conv2d" if isinstance(module, nn.Conv2d | SparseConv2d) else label
    left = dense if pattern is None else dense * pattern.keep // pattern.group
    return LayerMacs(name, label, dense, left, pattern)


def _given(
    patterns: Mapping[str, str | tuple[int, int] | Pattern], layers: Mapping[str, nn.Module]
) -> dict[str, Pattern | None]:
    for name in patterns:
        if not isinstance(layers.get(name), Layer):
            raise ValueError(f"patterns: {name!r} is no Linear or Conv2d of the model")
    return {name: Pattern(pattern) for name, pattern in patterns.items()}


def _pattern_of(module: nn.Module) -> Pattern | None:
    """The sparsest N:M that the weights keep to along their input channels; None for dense, or all-zero, weights."""
    if isinstance(module, Sparse):
        return module.pattern
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or module.weight.device.type == "meta":
        return None
    share = float((module.weight.detach() != 0).float().mean())
    return layer_pattern(module) if 0 < share <= 31 / 32 else None


def _other_attention(model: nn.Module) -> tuple[str, ...]:
    """Modules with heads that are no attention of a kind counted here, and have none inside."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (Attention, WindowAttention)) or any(hasattr(module, head) for head in _HEADS)
    ]
    return tuple(
        name
        for name in found
        if not any(other != name and other.startswith(f"{name}." if name else "") for other in found)
        and not isinstance(model.get_submodule(name), (Attention, WindowAttention))
    )


def _other_weights(model: nn.Module) -> list[str]:
    """Modules with a weight that multiplies, of kinds not counted here: other convolutions, stacked experts."""
    return [
        name
        for name, module in model.named_modules()
        if not isinstance(module, (*get_args(Layer), nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm))
        and any(
            parameter.ndim > 1 if key == "weight" else parameter.ndim > 2 and min(parameter.shape) > 1
            for key, parameter in module.named_parameters(recurse=False)
        )
    ]


def _count(
    model: nn.Module, layers: Mapping[str, Counted], example_input: Tensor, convention: Convention
) -> dict[str, int]:
    """Dense products per sample of every layer, in the order of the first calls."""
    counts: dict[str, int] = defaultdict(int)
    entered: dict[str, int] = {}
    with ExitStack() as stack:
        for name, module in layers.items():
            hook = _Counter(name, counts, entered if convention == "paper" else {})
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for name, module in model.named_modules():
            if isinstance(module, tome.MergingBlock):
                stack.callback(module.register_forward_pre_hook(_Entry(name, entered)).remove)
        stack.enter_context(keep_modes(model))
        stack.enter_context(torch.no_grad())
        model.eval()
        model(example_input)
    return {name: count // len(example_input) for name, count in counts.items()}


@dataclass
class _Entry:
    """Pre-hook: how many tokens, over the whole batch, enter a block."""

    block: str
    entered: dict[str, int]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.entered[f"{self.block}.mlp."] = args[0].shape[0] * args[0].shape[1]


@dataclass
class _Counter:
    """Hook: add the dense products of one call."""

    name: str
    counts: dict[str, int]
    entered: dict[str, int]

    def __call__(self, module: Counted, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.counts[self.name] += self.products(module, layer_input(args, kwargs), output)

    def products(self, module: Counted, x: Tensor, output: Tensor) -> int:
        if isinstance(module, (nn.Conv2d, SparseConv2d)):
            columns = math.prod(module.kernel_size) * module.in_channels // module.groups
            return output.numel() * columns
        if isinstance(module, (nn.Linear, SparseLinear, SparseLinear24)):
            before_merge = next((n for prefix, n in self.entered.items() if self.name.startswith(prefix)), None)
            positions = math.prod(x.shape[:-1]) if before_merge is None else before_merge
            return positions * module.in_features * module.out_features
        sequences, tokens, _ = x.shape
        return 2 * sequences * tokens * tokens * module.proj.in_features
