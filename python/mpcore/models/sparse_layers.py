"""Modules in the place of masked Linear and Conv2d layers; forward only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpcore.gpu.sparse24 import compress, tune
from mpcore.gpu.sparse24 import linear as linear24
from mpcore.models.sparse_ops import nm_conv2d, nm_linear, packed_tensors
from mpcore.pattern import Pattern
from mpcore.sparse import pack


class _SparseLayer(nn.Module):
    """An N:M weight, (rows, columns), stored packed."""

    values: Tensor
    places: Tensor
    bias: Tensor | None

    def __init__(self, matrix: Tensor, bias: Tensor | None, pattern: Pattern) -> None:
        super().__init__()
        self.pattern = pattern
        self.sizes = matrix.shape[1], pattern.keep, pattern.group
        values, places = packed_tensors(pack(matrix, pattern))
        self.register_buffer("values", values)
        self.register_buffer("places", places)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def weights(self) -> tuple[Tensor, Tensor, Tensor | None, int, int, int]:
        """What the operators take for the weights."""
        buffers = self._buffers  # attributes of a module that are tensors take a slow way
        return buffers["values"], buffers["places"], buffers["bias"], *self.sizes  # type: ignore[return-value]

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # nn.Module's own signature
        layer = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if layer.values.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"the sparse kernels take float32 and bfloat16, not {layer.values.dtype}")
        return layer


class SparseLinear(_SparseLayer):
    """A Linear whose N:M weight is stored packed."""

    def __init__(self, dense: nn.Linear, pattern: Pattern) -> None:
        super().__init__(dense.weight.detach(), dense.bias, pattern)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of x."""
        refuse_gradients(x)
        result: Tensor = nm_linear(x, *self.weights())
        return result

    def extra_repr(self) -> str:
        """Shape and pattern, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self.pattern}"


class SparseConv2d(_SparseLayer):
    """A Conv2d with zero padding and one group whose weight is N:M along its input channels."""

    def __init__(self, dense: nn.Conv2d, pattern: Pattern) -> None:
        super().__init__(conv_matrix(dense.weight.detach()), dense.bias, pattern)
        self.kernel, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding = explicit_padding(dense)

    def forward(self, x: Tensor) -> Tensor:
        """(images, channels, height, width) in either memory format -> the same format."""
        refuse_gradients(x)
        geometry = self.kernel, self.stride, self.padding, self.dilation
        result: Tensor = nm_conv2d(x, *self.weights(), *geometry)
        return result

    def extra_repr(self) -> str:
        """Geometry and pattern, for ``print(model)``."""
        return f"{len(self.values)} x {self.sizes[0]}, kernel {self.kernel}, stride {self.stride}, {self.pattern}"


class SparseLinear24(nn.Module):
    """A Linear whose 2:4 weight runs on sparse tensor cores."""

    def __init__(self, dense: nn.Linear, example: Tensor) -> None:
        super().__init__()
        self.weight = tune(compress(dense.weight.detach()), example)
        self.bias = None if dense.bias is None else dense.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        refuse_gradients(x)
        return linear24(x, self.weight, self.bias)


def conv_matrix(weight: Tensor) -> Tensor:
    """(O, C, kh, kw) as (O, kh kw C), channels fastest: the groups run along the channels."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def explicit_padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of padding; ``"valid"`` is none.

    Raises:
        ValueError: for ``"same"``, whose two sides may differ.
    """
    if layer.padding == "same":
        raise ValueError("padding 'same'")
    return (0, 0) if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1])


def refuse_gradients(x: Tensor) -> None:
    """Raise RuntimeError where a gradient would be lost."""
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("accelerated layers have no gradients; train the model they were made from")
