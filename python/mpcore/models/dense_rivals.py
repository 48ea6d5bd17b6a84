"""The best a user could call for a dense layer on this CPU, as the baseline of every gain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Call = Callable[[], Tensor]


def dense_calls(layer: nn.Linear | nn.Conv2d, x: Tensor) -> dict[str, Call]:
    """Ways to run a dense layer on one input: torch's function, and oneDNN with weights packed beforehand.

    The second exists on CPUs for float32 and bfloat16; where oneDNN refuses, it is left out.
    """
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        calls: dict[str, Call] = {"F.linear": lambda: functional.linear(x, weight, bias)}
        make = _packed_linear
    else:
        calls, make = {"F.conv2d": lambda: layer._conv_forward(x, weight, bias)}, _packed_conv2d
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if available and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        try:
            with torch.inference_mode():
                call = make(layer, x, weight, bias)
                call()
        except (RuntimeError, AttributeError, NotImplementedError):
            return calls
        calls["oneDNN packed"] = call
    return calls


def free_calls(layer: nn.Linear, x: Tensor) -> dict[str, Call]:
    """Ways to run a float32 layer faster without any sparsity, at the price of some digits."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    half = x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()

    def medium() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            return functional.linear(x, weight, bias)
        finally:
            torch.set_float32_matmul_precision(before)

    return {
        'torch.set_float32_matmul_precision("medium")': medium,
        "the dense model in bfloat16": lambda: functional.linear(*half),
    }


def _packed_linear(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Call:
    op, tokens = torch.ops.mkldnn, x.reshape(-1, x.shape[-1])
    packed = op._reorder_linear_weight(weight, len(tokens))
    return lambda: op._linear_pointwise(tokens, packed, bias, "none", [], "")


def _packed_conv2d(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Call:
    assert isinstance(layer, nn.Conv2d)
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise NotImplementedError("padding that oneDNN does not take as numbers")
    op, x = torch.ops.mkldnn, x.contiguous(memory_format=torch.channels_last)
    geometry = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups
    packed = op._reorder_convolution_weight(weight, *geometry, list(x.shape))
    return lambda: op._convolution_pointwise(x, packed, bias, *geometry, "none", [], "")
