"""What 2:4 gains on this GPU, layer by layer, against the dense layer of the same dtype; never an estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcore.gpu.capability import why_not
from mpcore.gpu.sparse24 import clean, compress, linear, tune, unsuitable
from mpcore.gpu.table import SpeedTable
from mpcore.gpu.timing import interleave, machine
from mpcore.progress import progress_bar
from mpcore.records import SpeedRow

BASELINE = "torch linear (cuBLASLt), same dtype and shapes, runs alternating, CUDA events"
VIT_B_TOKENS = 64 * 197
VIT_B = {"qkv": (2304, 768), "proj": (768, 768), "fc1": (3072, 768), "fc2": (768, 3072)}


def audit(
    model: nn.Module | None = None,
    example_input: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float16,
    dry: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> SpeedTable:
    """Time every eligible Linear dense and 2:4.

    Args:
        model: its Linear layers are audited, with the number of tokens they see; None takes the layers of a ViT-B/16
            with 64 images of 197 tokens and random 2:4 weights.
        example_input: one batch, needed with a model.
        dtype: both sides run in it; float16 or bfloat16.
        dry: check eligibility only.
        seed: of random weights and activations (zeros would flatter).
        progress: a bar on stderr.

    Returns:
        A row for each layer. Without a CUDA device, or dry, times are None and ``reason`` says "not measured".

    Raises:
        ValueError: for a model without an example input.
    """
    device = torch.device("cuda")
    unmeasured = "dry run" if dry else why_not(device)
    layers = _standard(seed) if model is None else _observed(model, example_input)
    rows = []
    with progress_bar(progress, "audit", len(layers)) as advance:
        for name, weight, tokens in layers:
            rows.append(_row(name, weight, tokens, dtype, unmeasured, seed))
            advance(name)
    here = machine(device) if not why_not(device) else "no GPU"
    return SpeedTable(here, torch.get_num_threads(), BASELINE, tuple(rows))


def _row(name: str, weight: Tensor, tokens: int, dtype: torch.dtype, unmeasured: str, seed: int) -> SpeedRow:
    refused = unsuitable(tuple(weight.shape), dtype) or _not_24(weight)
    if not refused and tokens == 0:
        refused = "the example does not reach it"
    if refused or unmeasured:
        return SpeedRow(name, not refused, "dense", None, None, None, refused or f"not measured: {unmeasured}")
    dense_s, sparse_s = _time(weight.to("cuda", dtype), tokens, seed)
    gain = dense_s / sparse_s
    backend = "cslt" if gain > 1 else "dense"
    return SpeedRow(name, True, backend, dense_s, sparse_s, gain, "" if gain > 1 else "dense is faster")


def _not_24(weight: Tensor) -> str:
    try:
        clean(weight)
    except ValueError as error:
        return f"not 2:4 ({error})"
    return ""


def _time(weight: Tensor, tokens: int, seed: int) -> tuple[float, float]:
    generator = torch.Generator(weight.device).manual_seed(seed)
    x = torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device, generator=generator)
    packed = tune(compress(weight), x)
    dense, sparse = interleave(
        [lambda: functional.linear(x, weight), lambda: linear(x, packed)], device=weight.device, repeats=101
    )
    return dense.median, sparse.median


def _standard(seed: int) -> Sequence[tuple[str, Tensor, int]]:
    """ViT-B/16 layers with random weights, the two largest of every four kept."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for name, shape in VIT_B.items():
        groups = torch.randn(shape, generator=generator).mul_(0.02).reshape(-1, 4)
        smaller = groups.abs().topk(2, dim=1, largest=False).indices
        layers.append((f"ViT-B {name}", groups.scatter_(1, smaller, 0.0).reshape(shape), VIT_B_TOKENS))
    return layers


def _observed(model: nn.Module, example_input: Tensor | None) -> Sequence[tuple[str, Tensor, int]]:
    """Every Linear with the number of tokens it sees in one run, in evaluation mode."""
    if example_input is None:
        raise ValueError("audit: a model needs an example_input")
    seen: dict[str, int] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((value for value in (*args[:1], *kwargs.values()) if isinstance(value, Tensor)), None)
        if given is not None:
            seen.setdefault(name, math.prod(given.shape[:-1]))

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        for name, module in linears.items():
            hook = module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
            )
            stack.callback(hook.remove)
        for part, mode in modes.items():
            stack.callback(setattr, part, "training", mode)
        with torch.no_grad():
            model.eval()(example_input)
    return [(name, module.weight.detach(), seen.get(name, 0)) for name, module in linears.items()]
