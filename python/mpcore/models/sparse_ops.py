"""Sparse layers as registered torch operators, so that ``torch.compile`` and ``torch.export`` see them whole.

``torch.ops.mpcore.nm_linear`` and ``torch.ops.mpcore.nm_conv2d`` take the packed weights as two tensors, values and
places (:class:`mpcore.Packed`). What the kernels make of them is kept for as long as the tensor of values lives, and
made anew where torch counts a change of one of the two.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from mpcore import _native
from mpcore.pattern import Pattern
from mpcore.sparse import Packed, team

_DTYPES = (torch.float32, torch.bfloat16)
_LIBRARY: Any = torch.library.Library("mpcore", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "nm_linear(Tensor x, Tensor values, Tensor places, Tensor? bias, int columns, int keep, int group, "
    "str? activation=None) -> Tensor"
)
_LIBRARY.define(
    "nm_conv2d(Tensor x, Tensor values, Tensor places, Tensor? bias, int columns, int keep, int group, "
    "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation) -> Tensor"
)
_LIBRARY.define("nm_unpack(Tensor values, Tensor places, int columns, int keep, int group) -> Tensor")
_KERNELS: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], tuple[int, ...], _native.NmWeights]] = {}
"""By the identity of the tensor of values, which is looked up faster than a weak key."""


def packed_tensors(packed: Packed) -> tuple[Tensor, Tensor]:
    """Values (float32 or bfloat16) and places (uint8) of packed weights, for the operators."""
    values = torch.from_numpy(packed.values.copy())
    return values.view(torch.bfloat16) if packed.dtype == "bfloat16" else values, torch.from_numpy(packed.places.copy())


def forget(values: Tensor) -> None:
    """Drop what the kernels keep of these values, for changes that nothing counts."""
    _KERNELS.pop(id(values), None)


def state(values: Tensor, places: Tensor) -> tuple[int, ...]:
    """What changes with the contents of the two tensors, as far as torch counts."""
    version = 0 if values.is_inference() else values._version
    return version, 0 if places.is_inference() else places._version, values.data_ptr(), places.data_ptr()


def _packed(values: Tensor, places: Tensor, columns: int, keep: int, group: int) -> Packed:
    return Packed(_raw(values.contiguous()), places.contiguous().numpy(), columns, Pattern((keep, group)))


def _kernel(values: Tensor, places: Tensor, columns: int, keep: int, group: int) -> _native.NmWeights:
    """The weights as the kernels read them; made anew where values or places were changed."""
    now, key, kernels = state(values, places), id(values), _KERNELS
    known = kernels.get(key)
    if known is None or known[0]() is not values or known[1]() is not places or known[2] != now:
        packed = _packed(values, places, columns, keep, group)
        # The entry goes with the tensor, before another one can have its identity.
        owner = weakref.ref(values, lambda _: kernels.pop(key, None))
        known = kernels[key] = owner, weakref.ref(places), now, packed.kernel
    return known[3]


def _raw(tensor: Tensor) -> npt.NDArray[Any]:
    """float32 as it is, bfloat16 as uint16, sharing memory."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return (tensor if tensor.dtype is torch.float32 else tensor.view(torch.uint16)).numpy()


def _unpack(values: Tensor, places: Tensor, columns: int, keep: int, group: int) -> Tensor:
    """The (rows, columns) matrix of packed weights, in their dtype."""
    return torch.from_numpy(_packed(values, places, columns, keep, group).unpack()).to(values.dtype)


def _linear(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    columns: int,
    keep: int,
    group: int,
    activation: str | None = None,
) -> Tensor:
    """(..., columns) -> (..., rows), in the dtype of x."""
    _check_input(x, x.shape[-1] if x.ndim else 1, columns, values)
    kernel, x = _kernel(values, places, columns, keep, group), x.contiguous()
    out = x.new_empty((*x.shape[:-1], values.shape[0]))
    kernel.linear(_raw(x), _raw(out), True, (_bias(bias), activation, values.dtype != x.dtype, *team(None)))
    return out


def _conv2d(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    columns: int,
    keep: int,
    group: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """(images, channels, height, width), contiguous or channels_last -> the same order, in the dtype of x."""
    if x.ndim != 4:
        raise ValueError(f"x: shape {tuple(x.shape)}, wanted (images, channels, height, width)")
    images, channels, height, width = x.shape
    _check_input(x, channels * kernel[0] * kernel[1], columns, values)
    _check_size((height, width), kernel, padding, dilation)
    weights, last = _kernel(values, places, columns, keep, group), _is_last(x)
    x = x if last else x.contiguous()
    out = _conv2d_shape(x, values, places, bias, columns, keep, group, kernel, stride, padding, dilation)
    source, target = (_raw(tensor.permute(0, 2, 3, 1) if last else tensor) for tensor in (x, out))
    pairs = (kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])
    geometry = ((images, channels), (height, width), *pairs)
    weights.conv2d(source, target, last, geometry, (_bias(bias), None, values.dtype != x.dtype, *team(None)))
    return out


def _unpack_shape(values: Tensor, places: Tensor, columns: int, keep: int, group: int) -> Tensor:
    return values.new_empty((values.shape[0], columns))


def _linear_shape(x: Tensor, values: Tensor, *_: object) -> Tensor:
    _check_device(x, values)
    return x.new_empty((*x.shape[:-1], values.shape[0]))


def _conv2d_shape(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    columns: int,
    keep: int,
    group: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    _check_device(x, values)
    size = [
        (x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    order = torch.channels_last if _is_last(x) else torch.contiguous_format
    return torch.empty((x.shape[0], values.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=order)


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _bias(bias: Tensor | None) -> npt.NDArray[Any] | None:
    """In one of the two dtypes that the kernels widen themselves."""
    if bias is None:
        return None
    return _raw((bias if bias.dtype in _DTYPES else bias.float()).contiguous())


def _check_size(size: tuple[int, int], kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> None:
    padded = [length + 2 * pad for length, pad in zip(size, padding, strict=True)]
    covered = [step * (length - 1) + 1 for length, step in zip(kernel, dilation, strict=True)]
    if padded[0] < covered[0] or padded[1] < covered[1]:
        raise ValueError(
            f"x: {padded[0]} x {padded[1]} with its padding is smaller than the kernel, {covered[0]} x {covered[1]}"
        )


def _check_input(x: Tensor, found: int, columns: int, values: Tensor) -> None:
    if found != columns:
        raise ValueError(f"x: shape {tuple(x.shape)} gives {found} inputs, the weights have {columns}")
    if x.dtype not in _DTYPES or values.dtype not in _DTYPES:
        raise TypeError(f"x is {x.dtype}, the weights are {values.dtype}; wanted float32 or bfloat16")


def _check_device(x: Tensor, values: Tensor) -> None:
    """An input beside weights without numbers would get memory that nothing has written to."""
    if values.is_meta and not x.is_meta:
        raise RuntimeError(f"x is on {x.device}, the weights are on meta: give them numbers with load_state_dict")


for _name, _function in (("nm_linear", _linear), ("nm_conv2d", _conv2d), ("nm_unpack", _unpack)):
    _LIBRARY.impl(_name, _function, "CPU")
torch.library.register_fake("mpcore::nm_linear", _linear_shape, lib=_LIBRARY)
torch.library.register_fake("mpcore::nm_conv2d", _conv2d_shape, lib=_LIBRARY)
torch.library.register_fake("mpcore::nm_unpack", _unpack_shape, lib=_LIBRARY)

nm_linear: Any = torch.ops.mpcore.nm_linear.default
nm_conv2d: Any = torch.ops.mpcore.nm_conv2d.default
nm_unpack: Any = torch.ops.mpcore.nm_unpack.default
