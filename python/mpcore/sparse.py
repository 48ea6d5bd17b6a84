"""N:M weights without their zeros, and products with them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from mpcore import _native
from mpcore.arrays import native, to_bool, to_numpy, to_threads
from mpcore.pattern import Pattern
from mpcore.serialise import atomic

FORMAT = "mpcore-packed-1"
"""Version of the files of :meth:`Packed.save`."""


@dataclass(frozen=True, eq=False)
class Packed:
    """An N:M-sparse matrix: N values of every group of M columns and their places in it.

    ``values`` is (rows, columns N / M), float32, or uint16 with the bits of bfloat16; ``places`` has the same shape,
    uint8 below M. A group with fewer than N weights is filled up with zeros. Both are read-only, as the
    kernels keep a copy.
    """

    values: npt.NDArray[np.float32] | npt.NDArray[np.uint16]
    places: npt.NDArray[np.uint8]
    columns: int
    pattern: Pattern

    def __post_init__(self) -> None:
        for name in ("values", "places"):
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the unpacked matrix."""
        return self.values.shape[0], self.columns

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the weights."""
        return "bfloat16" if self.values.dtype == np.uint16 else "float32"

    @cached_property
    def wide(self) -> npt.NDArray[np.float32]:
        """The values in float32, exactly."""
        if self.values.dtype == np.uint16:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return self.values.astype(np.float32, copy=False)

    @cached_property
    def kernel(self) -> _native.NmWeights:
        """The weights once more, in the order in which the kernels of this CPU read them; made at the first product."""
        return _native.NmWeights(self.wide, self.places, self.columns, self.pattern.keep, self.pattern.group)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("values", "places", "columns", "pattern")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def unpack(self) -> npt.NDArray[np.float32]:
        """The (rows, columns) matrix, exactly; bfloat16 comes back as float32, entries not kept as +0.0."""
        return _native.unpack_weights(self.wide, self.places, self.columns, self.pattern.keep, self.pattern.group)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; the places take ceil(log2 M) bits each. ``path`` is whole or as it was before."""
        bits = np.unpackbits(self.places[..., None], axis=-1, bitorder="little", count=_place_bits(self.pattern))
        tensors = {"values": self.values, "places": np.packbits(bits.ravel(), bitorder="little")}
        metadata = {
            "format": FORMAT,
            "pattern": str(self.pattern),
            "shape": f"{self.shape[0]} {self.shape[1]}",
            "dtype": self.dtype,
        }
        with atomic(path) as temporary:
            safetensors.numpy.save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Packed:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: if the file is something else, or damaged; it names the file.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"format {metadata.get('format')!r} is not {FORMAT!r}")
                values, places = file.get_tensor("values"), file.get_tensor("places")
            pattern = Pattern(metadata["pattern"])
            rows, columns = (int(length) for length in metadata["shape"].split())
            return cls(*_checked(values, places, rows, columns, pattern), columns, pattern)
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


def _place_bits(pattern: Pattern) -> int:
    return (pattern.group - 1).bit_length()


def _checked(
    values: npt.NDArray[Any], packed: npt.NDArray[Any], rows: int, columns: int, pattern: Pattern
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """The values and the places of a file, if they fit together."""
    shape = (rows, columns // pattern.group * pattern.keep)
    width = _place_bits(pattern)
    if columns % pattern.group or values.shape != shape or packed.shape != (-(-values.size * width // 8),):
        raise ValueError(f"values {values.shape} and places {packed.shape} are no {pattern} of {rows} x {columns}")
    if values.dtype not in (np.float32, np.uint16) or packed.dtype != np.uint8:
        raise ValueError(f"values {values.dtype} and places {packed.dtype} are not float32 or uint16, and uint8")
    bits = np.unpackbits(packed, count=values.size * width, bitorder="little").reshape(*shape, width)
    places = np.packbits(bits, axis=-1, bitorder="little")[..., 0]
    if places.size and places.max() >= pattern.group:
        raise ValueError(f"place {places.max()} is outside its group of {pattern.group}")
    by_group = places.reshape(-1, pattern.keep)
    if wrong := np.flatnonzero((by_group[:, 1:] <= by_group[:, :-1]).any(axis=1)).tolist():
        raise ValueError(f"places {by_group[wrong[0]].tolist()} of group {wrong[0]} are not in ascending order")
    return values, places


def pack(W: Any, pattern: str | tuple[int, int] | Pattern, *, mask: Any = None) -> Packed:
    """Store an N:M-sparse matrix without its zeros; nothing is rounded.

    Args:
        W: (rows, columns), float32 or bfloat16 (torch or ml_dtypes), at most N of every M consecutive columns not zero.
        pattern: N:M; M must divide the columns.
        mask: (rows, columns) bool: store the weights under it and take all others for zero.

    Raises:
        ValueError: at the first group that breaks the pattern, named by row and group; for NaN or infinity; for the
            weight of a convolution that is not in the matrix view, (O, kh kw C) with C fastest.
        TypeError: for another dtype.

    Example:
        >>> packed = pack(np.array([[0, 5, 0, 7]], dtype=np.float32), "2:4")
        >>> packed.values, packed.places
        (array([[5., 7.]], dtype=float32), array([[1, 3]], dtype=uint8))
    """
    wanted = Pattern(pattern)
    kind = _kind(W, "W")
    _refuse_convolution(W)
    weight = np.ascontiguousarray(to_numpy(W, "W", ndim=2))
    kept = None if mask is None else np.ascontiguousarray(to_bool(mask, "mask", shape=weight.shape))
    values, places = _native.pack_weights(weight, wanted.keep, wanted.group, kept)
    stored = (values.view(np.uint32) >> 16).astype(np.uint16) if kind == "bfloat16" else values
    return Packed(stored, places, weight.shape[1], wanted)


def nm_linear(
    packed: Packed,
    X: Any,
    *,
    bias: Any = None,
    activation: Literal["gelu", "relu"] | None = None,
    threads: int | None = None,
) -> Any:
    """``activation(X W' + bias)`` for packed N:M weights.

    Products are taken in the dtype of the weights (for bfloat16 weights the inputs are rounded to it), sums in float32.
    Where a weight is not kept, NaN and infinities of the input do not reach the output. No gradient is recorded.

    Args:
        packed: (R, C) weights from :func:`pack`.
        X: (T, C), float32 or bfloat16, numpy, ml_dtypes or a torch CPU tensor; T may be 0.
        bias: (R,), floating point.
        activation: ``"gelu"`` (with the error function, to 2e-7), ``"relu"`` or None.
        threads: None for all: torch's ``get_num_threads()`` where torch is loaded. The result does not depend on it.

    Returns:
        (T, R), of the kind and dtype of X.

    Raises:
        ValueError: for shapes that do not fit or another activation.
        TypeError: for weights that are not packed, another dtype, or a tensor that is not on the CPU.

    Example:
        >>> packed = pack(np.array([[0, 5, 0, 7]], dtype=np.float32), "2:4")
        >>> nm_linear(packed, np.ones((2, 4), dtype=np.float32), bias=np.array([0.5]))
        array([[12.5],
               [12.5]], dtype=float32)
    """
    if not isinstance(packed, Packed):
        raise TypeError(f"packed: {type(packed).__name__} is not what mpcore.pack returns; call nm_linear(packed, X)")
    kind = _kind(X, "X")
    shape = tuple(X.shape)
    if len(shape) != 2 or shape[1] != packed.columns:
        raise ValueError(f"X: shape {shape}, wanted (T, {packed.columns})")
    shift = None if bias is None else np.ascontiguousarray(to_numpy(bias, "bias", ndim=1), dtype=np.float32)
    if shift is not None and len(shift) != packed.shape[0]:
        raise ValueError(f"bias: {len(shift)} values, wanted {packed.shape[0]}, one per row of the weights")
    workers = to_threads(threads)
    tokens = raw(X, "X")
    last = tokens.flags.c_contiguous
    if not (last or tokens.flags.f_contiguous):
        tokens, last = np.ascontiguousarray(tokens), True
    out = _empty_like(X, (shape[0], packed.shape[0]))
    half = packed.dtype == "bfloat16" and kind == "float32"
    packed.kernel.linear(tokens, raw(out, "out"), last, (shift, activation, half, *team(workers)))
    return out


def team(threads: int | None) -> tuple[int | None, bool]:
    """Number of threads of a product, and whether to use the OpenMP runtime of torch: two teams would fight."""
    torch = sys.modules.get("torch")
    if torch is None:
        return threads, False
    return (torch.get_num_threads() if threads is None else threads), True


def raw(value: Any, name: str) -> npt.NDArray[Any]:
    """float32 as it is, bfloat16 as uint16, sharing memory with ``value``."""
    if _is_torch(value):
        if not value.is_cpu:
            raise TypeError(f"{name}: the tensor is on {value.device}, wanted one on the CPU (call .cpu())")
        value = value.detach() if value.requires_grad else value
        if value.dtype.itemsize == 2:
            value = value.view(sys.modules["torch"].uint16)
        return value.numpy()  # type: ignore[no-any-return]
    array = native(np.asarray(value))
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _empty_like(value: Any, shape: tuple[int, int]) -> Any:
    """Room of the kind and dtype of ``value``."""
    if _is_torch(value):
        return value.new_empty(shape)
    return np.empty(shape, dtype=value.dtype.newbyteorder("="))


def _kind(value: Any, name: str) -> Literal["float32", "bfloat16"]:
    """The dtype of an array or tensor, if it is one of the two."""
    dtype = getattr(value, "dtype", None)
    if dtype in _KINDS:
        return _KINDS[dtype]
    if dtype is None:
        raise TypeError(f"{name}: {type(value).__name__} is no array; use numpy.asarray({name}, numpy.float32)")
    kind = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    if kind == "float32":
        return _KINDS.setdefault(dtype, "float32")
    if kind == "bfloat16":
        return _KINDS.setdefault(dtype, "bfloat16")
    remedy = f"{name}.float()" if _is_torch(value) else f"{name}.astype(numpy.float32)"
    raise TypeError(f"{name}: dtype {kind} is not float32 or bfloat16; use {remedy}")


def _refuse_convolution(W: Any) -> None:
    if len(shape := tuple(W.shape)) == 4:
        moved = f"W.{'permute' if _is_torch(W) else 'transpose'}(0, 2, 3, 1)"
        raise ValueError(
            f"W: shape {shape} has 4 dimensions, wanted 2: for a convolution (O, C, kh, kw) pass its matrix view "
            f"{moved}.reshape(len(W), -1), C fastest, and a mask likewise"
        )


_KINDS: dict[Any, Literal["float32", "bfloat16"]] = {}
"""The dtypes seen so far, of numpy, ml_dtypes and torch: their names take microseconds to ask for."""


def _is_torch(value: Any) -> bool:
    return type(value).__module__.startswith("torch")
