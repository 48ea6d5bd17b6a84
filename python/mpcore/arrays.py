"""What the facades take: floating-point arrays of several libraries, none of which is imported here but NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST = 2**64 - 1
"""The largest count or seed that the native routines hold."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WANTED = "float16, bfloat16, float32 or float64"


def to_numpy(value: Any, name: str, *, ndim: int | None = None, finite: bool = True) -> np.ndarray[Any, Any]:
    """A floating-point array from numpy, a torch CPU tensor, or anything with ``__array__`` or DLPack.

    bfloat16 (torch or ml_dtypes) becomes float32, exactly; float16, float32 and float64 stay, bytes of the other order
    are turned round. Nothing else is converted, and torch is not imported.

    Args:
        value: the array-like.
        name: how errors call it.
        ndim: number of dimensions wanted; None takes any.
        finite: refuse NaN and infinities.

    Raises:
        TypeError: if the elements are not floating point, the tensor is not on the CPU, or entries are masked out.
        ValueError: for another number of dimensions, an empty array, NaN or infinity.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array, whose mask would be lost; pass .filled(0) or .data")
    if type(value).__module__.startswith("torch"):
        tensor = value.detach()
        if tensor.device.type != "cpu":
            raise TypeError(f"{name}: the tensor is on {tensor.device}, wanted one on the CPU (call .cpu())")
        if (kind := str(tensor.dtype).removeprefix("torch.")) not in _FLOATS:
            raise TypeError(f"{name}: dtype {kind} is not {_WANTED}")
        value = (tensor.float() if kind == "bfloat16" else tensor).numpy()
    elif not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
        value = np.from_dlpack(value)
    array = native(np.asarray(value))
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name}: dtype {array.dtype} is not {_WANTED}")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name}: shape {array.shape} has {array.ndim} dimensions, wanted {ndim}")
    if array.size == 0:
        raise ValueError(f"{name}: shape {array.shape} is empty")
    if finite and not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: entry {where} is {array[where]}, only finite values are accepted")
    return array


def native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array itself, or a copy in this machine's byte order."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def to_bool(value: Any, name: str, *, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A boolean array from numpy or a torch tensor, without importing torch.

    Args:
        value: the array-like.
        name: how errors call it.
        shape: wanted; None takes any.

    Raises:
        TypeError: for any other type of element.
        ValueError: for another shape.
    """
    array = np.asarray(value.detach().cpu() if type(value).__module__.startswith("torch") else value)
    if array.dtype != np.bool_:
        raise TypeError(f"{name}: dtype {array.dtype} is not bool")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: shape {array.shape}, wanted {shape}")
    return array


def to_count(value: Any, name: str, *, least: int = 0, most: int = MOST) -> int:
    """An integer from ``least`` to ``most``, from Python or numpy.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        limited = most < MOST or (isinstance(value, int) and value > most)
        wanted = f"between {least} and {most}" if limited else f">= {least}"
        raise ValueError(f"{name}: {value!r} is not an integer {wanted}")
    return int(value)


def to_real(value: Any, name: str) -> float:
    """A number, from Python or numpy.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {value!r} is not a number")
    return float(value)


def to_threads(value: Any) -> int | None:
    """A number of threads, 1 to 1024, or None for all cores.

    Raises:
        ValueError: for anything else.
    """
    return None if value is None else to_count(value, "threads", least=1, most=1024)
