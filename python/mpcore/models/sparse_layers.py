"""Modules in the place of masked Linear and Conv2d layers; forward only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mpcore.gpu.sparse24 import compress, decompress, tune
from mpcore.gpu.sparse24 import linear as linear24
from mpcore.models import sparse_ops
from mpcore.models.sparse_ops import nm_conv2d, nm_linear, nm_unpack, packed_tensors
from mpcore.pattern import Pattern
from mpcore.sparse import pack

_DTYPES = (torch.float32, torch.bfloat16)


class _Stored(nn.Module, ABC):
    """A layer whose weight is kept in another form and is dense in state dicts, under the dense layer's name.

    State dicts go both ways between a model and its accelerated copy.
    """

    @abstractmethod
    def _dense_weight(self) -> Tensor: ...

    @abstractmethod
    def _shape(self) -> torch.Size:
        """Of the dense weight."""

    @abstractmethod
    def _take(self, weight: Tensor, assign: bool) -> None:
        """Keep another dense weight of that shape, with ``assign`` in its own dtype; ValueError if it cannot be."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._dense_weight()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        name = f"{prefix}weight"
        if name in unexpected_keys:
            unexpected_keys.remove(name)
        if (weight := state_dict.get(name)) is not None:
            try:
                self._check_and_take(weight, bool(local_metadata.get("assign_to_params_buffers")))
            except ValueError as error:
                error_msgs.append(f"{name}: {error}")
        elif strict:
            missing_keys.append(name)

    @torch.no_grad()
    def _check_and_take(self, weight: Any, assign: bool) -> None:
        if not isinstance(weight, Tensor) or weight.is_meta:
            raise ValueError(f"a {'tensor on meta' if isinstance(weight, Tensor) else type(weight).__name__}")
        if weight.shape != self._shape():
            raise ValueError(f"shape {tuple(weight.shape)}, wanted {tuple(self._shape())}")
        self._take(weight.detach(), assign)


class _SparseLayer(_Stored):
    """An N:M weight, (rows, columns), stored packed.

    ``load_state_dict`` and writes in place change it. A write that torch does not count is not seen once the layer has
    run: one through ``.data`` or ``.numpy()``, and one to tensors that were made in inference mode.
    """

    values: Tensor
    places: Tensor
    bias: Tensor | None
    _dense: tuple[tuple[int, ...], Tensor] | None = None

    def __init__(self, matrix: Tensor, bias: Tensor | None, pattern: Pattern) -> None:
        super().__init__()
        self.pattern = pattern
        self.sizes = matrix.shape[1], pattern.keep, pattern.group
        with torch.inference_mode(False):  # torch does not count what is written to tensors made in inference mode
            values, places = packed_tensors(pack(matrix, pattern))
            self.register_buffer("values", values, persistent=False)
            self.register_buffer("places", places, persistent=False)
            self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """A copy in the shape of the dense layer: unpacked when first asked for, kept until the layer changes."""
        if torch.compiler.is_compiling():
            return self._dense_weight()
        now = sparse_ops.state(self.values, self.places)
        if self._dense is None or self._dense[0] != (*now, self._dense[1]._version):
            with torch.inference_mode(False):
                matrix = self._dense_weight()
            self._dense = (*now, matrix._version), matrix
        return self._dense[1]

    def _dense_weight(self) -> Tensor:
        return self._shaped(nm_unpack(self.values, self.places, *self.sizes))

    def _shaped(self, matrix: Tensor) -> Tensor:
        """(rows, columns) in the shape of the dense weight; :meth:`_matrix` is the way back."""
        return matrix

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight

    def weights(self) -> tuple[Tensor, Tensor, Tensor | None, int, int, int]:
        """What the operators take for the weights."""
        buffers = self._buffers  # attributes of a module that are tensors take a slow way
        return buffers["values"], buffers["places"], buffers["bias"], *self.sizes  # type: ignore[return-value]

    def _product(self, operator: Any, input: Tensor, *geometry: Any) -> Tensor:
        refuse_gradients(input)
        x = _autocast(input)
        half = x.dtype is torch.float16
        result: Tensor = operator(x.float() if half else x, *self.weights(), *geometry)
        return result.half() if half else result

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_dense"}

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # nn.Module's own signature
        before = dict(self._buffers)
        with torch.inference_mode(False):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.values.dtype not in _DTYPES:
            wanted = self.values.dtype
            self._buffers.update(before)
            raise TypeError(
                f"the sparse kernels take float32 and bfloat16, not {wanted}; the layers before this one may be "
                "converted already: convert the model they were made from and accelerate that"
            )
        self._buffers["places"] = self.places.to(torch.uint8)
        return self

    def _shape(self) -> torch.Size:
        return self._shaped(torch.empty(len(self.values), self.sizes[0], device="meta")).shape

    def _take(self, weight: Tensor, assign: bool) -> None:
        dtype = weight.dtype if assign and weight.dtype in _DTYPES else self.values.dtype
        values, places = packed_tensors(pack(self._matrix(weight.cpu().to(dtype)), self.pattern))
        if assign or self.values.is_meta:
            self.values, self.places = values, places
        else:
            self.values.copy_(values)
            self.places.copy_(places)
        sparse_ops.forget(self.values)
        self._dense = None


class SparseLinear(_SparseLayer):
    """A Linear whose N:M weight is stored packed."""

    def __init__(self, dense: nn.Linear, pattern: Pattern) -> None:
        super().__init__(dense.weight.detach(), dense.bias, pattern)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of the input, or of autocast where that is on."""
        return self._product(nm_linear, input)

    def extra_repr(self) -> str:
        """Shape and pattern, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self.pattern}"


class SparseConv2d(_SparseLayer):
    """A Conv2d with zero padding and one group whose weight is N:M along its input channels."""

    groups, padding_mode, transposed = 1, "zeros", False

    def __init__(self, dense: nn.Conv2d, pattern: Pattern) -> None:
        super().__init__(conv_matrix(dense.weight.detach()), dense.bias, pattern)
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels
        self.kernel_size, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding = explicit_padding(dense)

    def forward(self, input: Tensor) -> Tensor:
        """([images,] channels, height, width) in either memory format -> the same format."""
        geometry = self.kernel_size, self.stride, self.padding, self.dilation
        if input.ndim == 3:
            return self._product(nm_conv2d, input[None], *geometry)[0]
        return self._product(nm_conv2d, input, *geometry)

    def _shaped(self, matrix: Tensor) -> Tensor:
        height, width = self.kernel_size
        split = matrix.reshape(self.out_channels, height, width, self.in_channels)
        return split.permute(0, 3, 1, 2).contiguous()

    def _matrix(self, weight: Tensor) -> Tensor:
        return conv_matrix(weight)

    def extra_repr(self) -> str:
        """Geometry and pattern, for ``print(model)``."""
        return f"{len(self.values)} x {self.sizes[0]}, kernel {self.kernel_size}, stride {self.stride}, {self.pattern}"


class SparseLinear24(_Stored):
    """A Linear whose 2:4 weight runs on sparse tensor cores; its parts stay on the device they were made on."""

    pattern = Pattern("2:4")
    bias: Tensor | None

    def __init__(self, dense: nn.Linear, example: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.weight = tune(compress(dense.weight.detach()), example)
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach().clone())

    def _dense_weight(self) -> Tensor:
        return decompress(self.weight)

    def _shape(self) -> torch.Size:
        return torch.Size(self.weight.shape)

    def _take(self, weight: Tensor, assign: bool) -> None:
        packed = compress(weight.to(self.weight.packed.device, self.weight.dtype))
        self.weight = replace(packed, algorithm=self.weight.algorithm)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        refuse_gradients(input)
        return linear24(input, self.weight, self.bias)


Sparse = SparseLinear | SparseConv2d | SparseLinear24


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
    """Raise RuntimeError where a gradient, or the tangent of forward mode, would be lost."""
    if (x.requires_grad and torch.is_grad_enabled()) or _has_tangent(x):
        raise RuntimeError(
            "accelerated layers have no gradients: run the model under torch.no_grad() or torch.inference_mode(), "
            "or train the model it was made from"
        )


def _has_tangent(x: Tensor) -> bool:
    """Whether ``torch.func.jvp`` or a dual level differentiates by this input."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _autocast(x: Tensor) -> Tensor:
    """The input in the dtype of autocast, where it is on: what a dense layer computes in."""
    if torch.is_autocast_enabled("cpu") and x.dtype in (*_DTYPES, torch.float16):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x
