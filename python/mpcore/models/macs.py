"""Multiply-accumulates of one sample: what a model computes, and what its N:M patterns leave of it.

Counted are Linear and Conv2d layers, by hooks, and the two products of attention, QK' and (softmax) V, of timm's
Attention and WindowAttention. Norms, activations and softmax are not. A layer whose weights keep to a pattern counts
N/M of its products; this is what hardware for the pattern executes, not a running time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from mpcore.models import tome
from mpcore.records import Pattern

Convention = Literal["exact", "paper"]
Counted = nn.Linear | nn.Conv2d | Attention | WindowAttention


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
    uncounted: tuple[str, ...]  # Linear and Conv2d layers that were never called

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
        ValueError: for another convention, a name that is no counted layer, or a model in which nothing is counted.

    Example:
        >>> report = macs(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), torch.zeros(1, 3, 4, 4))
        >>> report.total == 4 * 4 * 9 * 3 * 8
        True
    """
    if convention not in ("exact", "paper"):
        raise ValueError(f"convention: {convention!r}, wanted 'exact' or 'paper'")
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
    silent = tuple(n for n, m in layers.items() if n not in dense and isinstance(m, (nn.Linear, nn.Conv2d)))
    return MacReport(convention, sum(row.macs for row in rows), baseline, rows, silent)


def _row(name: str, module: nn.Module, dense: int, pattern: Pattern | None) -> LayerMacs:
    kind = {nn.Linear: "linear", nn.Conv2d: "conv2d"}
    label = next((text for cls, text in kind.items() if isinstance(module, cls)), "attention")
    left = dense if pattern is None else dense * pattern.keep // pattern.group
    return LayerMacs(name, label, dense, left, pattern)


def _given(
    patterns: Mapping[str, str | tuple[int, int] | Pattern], layers: Mapping[str, nn.Module]
) -> dict[str, Pattern | None]:
    for name in patterns:
        if not isinstance(layers.get(name), (nn.Linear, nn.Conv2d)):
            raise ValueError(f"patterns: {name!r} is no Linear or Conv2d of the model")
    return {name: Pattern(pattern) for name, pattern in patterns.items()}


def _pattern_of(module: nn.Module) -> Pattern | None:
    """The sparsest N:M that the weights keep to along their input channels; None for dense, or all-zero, weights."""
    weight = module.weight if isinstance(module, (nn.Linear, nn.Conv2d)) else None
    if weight is None or weight.device.type == "meta":
        return None
    kept = (weight.detach() != 0).transpose(1, -1)
    if kept.float().mean() > 31 / 32:
        return None
    channels, found = kept.shape[-1], []
    for group in range(2, 33):
        if channels % group == 0:
            keep = int(kept.reshape(-1, group).sum(dim=1).max())
            if 0 < keep < group:
                found.append(Pattern((keep, group)))
    return min(found, key=lambda pattern: pattern.density, default=None)


def _count(
    model: nn.Module, layers: Mapping[str, Counted], example_input: Tensor, convention: Convention
) -> dict[str, int]:
    """Dense products per sample of every layer, in the order of the first calls."""
    counts: dict[str, int] = defaultdict(int)
    entered: dict[str, int] = {}
    with ExitStack() as stack:
        for name, module in layers.items():
            hook = _Counter(name, counts, entered if convention == "paper" else {})
            stack.callback(module.register_forward_hook(hook).remove)
        for name, module in model.named_modules():
            if isinstance(module, tome.MergingBlock):
                stack.callback(module.register_forward_pre_hook(_Entry(name, entered)).remove)
        stack.enter_context(_evaluating(model))
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

    def __call__(self, module: Counted, args: tuple[Any, ...], output: Tensor) -> None:
        self.counts[self.name] += self.products(module, args[0], output)

    def products(self, module: Counted, x: Tensor, output: Tensor) -> int:
        if isinstance(module, nn.Conv2d):
            return output.numel() // module.out_channels * module.weight.numel()
        if isinstance(module, nn.Linear):
            before_merge = next((n for prefix, n in self.entered.items() if self.name.startswith(prefix)), None)
            positions = x.numel() // module.in_features if before_merge is None else before_merge
            return positions * module.weight.numel()
        sequences, tokens, _ = x.shape
        return 2 * sequences * tokens * tokens * module.proj.in_features


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
