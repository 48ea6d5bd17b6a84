"""Safetensors in and out, one tensor at a time, with nothing but NumPy; nothing is ever unpickled.

The header of a file is read and checked in full before the first tensor is touched, so a truncated or hostile file is
a one-line ``ValueError`` that names the file and the tensor. Layout of the format:
8 bytes header length (little endian) · JSON header ``name -> {dtype, shape, data_offsets}`` · tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpcore.records import atomic

Array = np.ndarray[Any, Any]

_READABLE = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
_UNREADABLE = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1, "C64": 8}
_WRITABLE = {np.dtype(code): name for name, code in _READABLE.items() if name not in ("BF16", "BOOL")}
_WRITABLE[np.dtype(bool)] = "BOOL"

_LARGEST_HEADER = 100_000_000  # bytes; the limit of the format's own library
_LARGEST_TENSOR = 2**60  # elements, counting an axis of length 0 as 1
_PICKLES = frozenset({".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt"})
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies: file, offset in bytes from the start of the file, dtype name and shape."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Weights(Mapping[str, Array]):
    """The tensors of a checkpoint by name; each is read when asked for and not kept.

    float16, float32, float64, integers and BOOL come as stored, bfloat16 as float32 (exactly).
    """

    def __init__(self, path: Path, entries: dict[str, _Entry], metadata: dict[str, str]) -> None:
        self.path = path
        self.metadata = metadata
        self._entries = entries

    def __getitem__(self, name: str) -> Array:
        try:
            entry = self._entries[name]
        except KeyError:
            raise KeyError(f"{self.path}: no tensor {name!r}") from None
        return _read_tensor(name, entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"Weights({str(self.path)!r}, {len(self)} tensors)"

    def blocks(self, name: str, *, values: int = 1 << 22) -> Iterator[Array]:
        """One tensor in runs of whole rows (of its first axis), each of about ``values`` entries, as stored.

        bfloat16 comes as its bits, uint16 (:func:`widened` makes float32 of them), float8 as uint8, BOOL as bool.
        Reading in blocks bounds memory however large the tensor is.

        Raises:
            KeyError: for a name that is not there.
            ValueError: if the file was cut short meanwhile.
        """
        entry = self._entries[name]
        if not entry.shape or 0 in entry.shape:
            yield _read_stored(name, entry).reshape(entry.shape)
            return
        row = math.prod(entry.shape[1:])
        step = max(1, values // row)
        for start in range(0, entry.shape[0], step):
            rows = min(step, entry.shape[0] - start)
            block = _read_stored(name, entry, start * row, rows * row)
            yield block.reshape(rows, *entry.shape[1:])

    def files(self) -> dict[Path, tuple[str, ...]]:
        """Every file the tensors lie in, and their names in the order of their bytes."""
        found: dict[Path, list[str]] = {}
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].offset):
            found.setdefault(entry.path, []).append(name)
        return {path: tuple(names) for path, names in sorted(found.items())}

    def only(self, names: Iterable[str]) -> Weights:
        """The same checkpoint with these tensors alone."""
        return Weights(self.path, {name: self._entries[name] for name in names}, self.metadata)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, from the header alone."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> dict[str, str]:
        """Stored dtype of every tensor in the format's own words, such as ``"BF16"``."""
        return {name: entry.dtype for name, entry in self._entries.items()}


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Open a checkpoint: a .safetensors file, a ``*.safetensors.index.json``, or a folder that holds one.

    Args:
        path: the file, index or folder. In a folder with several, ``model.safetensors`` is meant.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it is a pickle (never opened), or not a well-formed safetensors file; names file and tensor.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> save_tensors(file, {"fc.weight": np.eye(2, dtype=np.float32)})
        >>> open_weights(file)["fc.weight"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    target = Path(path)
    if target.is_dir():
        target = _checkpoint_in(target)
    if not target.exists():
        raise FileNotFoundError(f"{target}: no such file or folder")
    if not target.is_file():
        raise ValueError(f"{target}: not a regular file")
    if target.name.endswith(_INDEX):
        return _open_index(target)
    _refuse_pickle(target)
    entries, metadata = _read_header(target)
    return Weights(target, entries, metadata)


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` as one safetensors file, whole or not at all; equal content gives equal bytes.

    Args:
        path: the file to write.
        tensors: name -> array of float16/32/64, any integer dtype or bool, any strides.
        metadata: strings to store in the header.

    Raises:
        TypeError: for a dtype the format does not have.
    """
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # widest first keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in names:
        array = arrays[name]
        dtype = _WRITABLE.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise TypeError(f"{path}: tensor {name!r} has dtype {array.dtype}, which safetensors cannot hold")
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    with atomic(path) as temporary, temporary.open("wb") as handle:
        handle.write(_header_bytes(header))
        for name in names:
            handle.write(_little_endian(arrays[name]).data)


def header_of(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a safetensors file, up to its first tensor."""
    with Path(path).open("rb") as handle:
        length = handle.read(8)
        return length + handle.read(int.from_bytes(length, "little"))


def header_for(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds ``tensors``, name -> (dtype in the format's words, shape), in this order."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * _item_size(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return _header_bytes(header)


def widened(stored: Array, dtype: str) -> Array:
    """The values of a block of :meth:`Weights.blocks`: bfloat16 bits as float32 (exactly), others as they are."""
    if dtype != "BF16":
        return stored
    wide = stored.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_arrays(arrays: Iterable[Array]) -> str:
    """SHA-256 over dtype, shape and bytes of each array in turn, in hex.

    Example:
        >>> sha256_arrays([np.zeros(2)]) == sha256_arrays([np.zeros((2, 1))])
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        plain = _little_endian(array)
        digest.update(f"{plain.dtype.str}{np.shape(array)}".encode())
        digest.update(plain.data)
    return digest.hexdigest()


def _header_bytes(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _little_endian(array: Array) -> Array:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _checkpoint_in(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    whole = [file for file in files if file.name == "model.safetensors"]
    for found in (whole, sorted(folder.glob(f"*{_INDEX}")), files):
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{folder}: holds {', '.join(file.name for file in found[:4])}; name the one you mean")
    raise FileNotFoundError(f"{folder}: holds no .safetensors file")


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as handle:
        start = handle.read(9)
    zipped, pickled = start[:4] == b"PK\x03\x04", start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    # A header of 640 bytes begins with the two bytes of a pickle, but then the ninth byte opens the JSON object.
    if path.suffix.lower() in _PICKLES or ((zipped or pickled) and start[8:9] != b"{"):
        raise ValueError(
            f"{path}: looks like a pickle, which can run code and is never opened here; convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )


def _read_header(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Every tensor of one file and the file's metadata, checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8:
            raise ValueError(f"{path}: not a safetensors file ({size} bytes)")
        if length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(
                f"{path}: not a safetensors file, or cut short (header of {length} bytes in a file of {size} bytes)"
            )
        header = _parse_json(path, handle.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: __metadata__ is not a table of strings")
    entries = {name: _parse_entry(path, name, value, 8 + length) for name, value in header.items()}
    _check_tiling(path, entries, 8 + length, size)
    return entries, metadata


def _parse_json(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise ValueError(f"the key {key!r} occurs twice")
            table[key] = value
        return table

    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{path}: the header is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: the header is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: the header is not a JSON object")
    return document


def _parse_entry(path: Path, name: str, value: Any, start: int) -> _Entry:
    def wrong(what: str) -> ValueError:
        return ValueError(f"{path}: tensor {name!r}: {what}")

    if not name.isprintable():
        raise wrong("the name is not printable text")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise wrong("the entry does not hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _READABLE.keys() | _UNREADABLE.keys():
        raise wrong(f"unknown dtype {dtype!r}")
    if not _is_naturals(shape) or len(shape) > 32 or math.prod(max(length, 1) for length in shape) > _LARGEST_TENSOR:
        raise wrong(f"shape {str(shape)[:80]} is not a list of at most 32 lengths")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(f"data_offsets {str(offsets)[:80]} are not two ascending numbers")
    expected = math.prod(shape) * _item_size(dtype)
    if offsets[1] - offsets[0] != expected:
        raise wrong(f"{dtype} of shape {tuple(shape)} needs {expected} bytes, the entry has {offsets[1] - offsets[0]}")
    return _Entry(path, start + offsets[0], dtype, tuple(shape))


def _is_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int and entry >= 0 for entry in value)


def _item_size(dtype: str) -> int:
    return np.dtype(_READABLE[dtype]).itemsize if dtype in _READABLE else _UNREADABLE[dtype]


def _check_tiling(path: Path, entries: dict[str, _Entry], start: int, size: int) -> None:
    """The tensors must cover the rest of the file once, without gap or overlap."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, math.prod(item[1].shape))):
        if entry.offset != position:
            fault = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
            raise ValueError(f"{path}: tensor {name!r} {fault} (byte {entry.offset}, expected {position})")
        position += math.prod(entry.shape) * _item_size(entry.dtype)
        if position > size:
            raise ValueError(f"{path}: cut short: tensor {name!r} ends at byte {position}, the file has {size}")
    if position != size:
        raise ValueError(f"{path}: {size - position} bytes after the last tensor")


def _open_index(path: Path) -> Weights:
    """A checkpoint cut into several files; the index maps every tensor to a file beside it."""
    with path.open("rb") as handle:
        document = _parse_json(path, handle.read(_LARGEST_HEADER))
    places = document.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path}: no weight_map")
    shards: dict[str, dict[str, _Entry]] = {}
    entries: dict[str, _Entry] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or shard != Path(shard).name or shard in ("", ".", "..") or "\\" in shard:
            raise ValueError(f"{path}: tensor {name!r}: {shard!r} is not the name of a file beside the index")
        if shard not in shards:
            shards[shard] = _read_shard(path, shard)
        if name not in shards[shard]:
            raise ValueError(f"{path}: tensor {name!r} is not in {shard}")
        entries[name] = shards[shard][name]
    metadata = document.get("metadata")
    return Weights(path, entries, {k: str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {})


def _read_shard(index: Path, name: str) -> dict[str, _Entry]:
    file = index.with_name(name)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, though {index.name} names it")
    _refuse_pickle(file)
    return _read_header(file)[0]


def _read_tensor(name: str, entry: _Entry) -> Array:
    """Read one tensor into memory of its own: a file that shrinks meanwhile is an error here, not a crash later."""
    if entry.dtype not in _READABLE:
        raise ValueError(f"{entry.path}: tensor {name!r} is {entry.dtype}; convert it to bfloat16 or wider first")
    return widened(_read_stored(name, entry), entry.dtype).reshape(entry.shape)


def _read_stored(name: str, entry: _Entry, first: int = 0, count: int | None = None) -> Array:
    """``count`` values from the ``first`` on, flat."""
    kind = np.dtype(_READABLE.get(entry.dtype, f"u{_item_size(entry.dtype)}"))
    count = math.prod(entry.shape) if count is None else count
    stored = np.fromfile(entry.path, kind, count, offset=entry.offset + first * kind.itemsize)
    if stored.size != count:
        raise ValueError(f"{entry.path}: tensor {name!r}: {stored.size} of {count} values; the file was cut short")
    if entry.dtype == "BOOL":
        if stored.size and stored.max() > 1:
            raise ValueError(f"{entry.path}: tensor {name!r}: a BOOL byte is neither 0 nor 1")
        stored = stored.view(np.bool_)
    return stored
