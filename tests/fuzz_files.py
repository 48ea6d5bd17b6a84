"""Damaged files and strings through every reader; see fuzz.py, which runs them."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpcore.checkpoint import open_weights, save_tensors
from mpcore.models.recipe import Recipe
from mpcore.pattern import Pattern
from mpcore.records import ConvergenceError, LayerInfo, LayerInventory, Manifest
from mpcore.sparse import Packed, nm_linear, pack

Array = np.ndarray[Any, Any]
REFUSED = (ValueError, TypeError, ConvergenceError)
PLACE = Path(tempfile.mkdtemp(prefix="mpcore-fuzz-"))

seeds = st.integers(0, 2**32 - 1)


def attempt(expected: bool, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result, or None if the input was refused, which it must not be where ``expected``."""
    try:
        return function(*arguments, **options)
    except REFUSED as error:
        if expected or not str(error):
            raise AssertionError(f"refused without need or words: {error!r}") from error
        return None


@given(st.text(max_size=12) | st.from_regex(r"\s*\d{1,3}\s*:\s*\d{1,3}\s*", fullmatch=True))
def pattern_strings(text: str) -> None:
    found = attempt(False, Pattern, text)
    if found is not None:
        assert 1 <= found.keep < found.group <= 32
        assert Pattern(str(found)) == found


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, doubled or spliced; sometimes only inside the first bytes, where headers are."""
    data, reach = bytearray(whole), len(whole) if rng.random() < 0.5 else min(len(whole), 200)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at, kind = rng.randrange(max(1, min(reach, len(data)))), rng.randrange(5)
        if kind == 0:
            data = data[:at]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif kind == 3:
            data[at : at + 1] = rng.choice((b"-1", b"1e9", b"null", b"[]", b"{}", b'"', b"99999999999999999999", b"0"))
        else:
            del data[at : at + rng.randrange(1, 9)]
    return bytes(data)


def read_damaged(number: int, path: Path, whole: bytes, read: Callable[[Path], Any]) -> Any:
    path.write_bytes(damaged(whole, random.Random(number)))
    try:
        return read(path)
    except (*REFUSED, OSError) as error:
        if not str(error):
            raise AssertionError(f"an error without words: {error!r}") from error
        return None


def _tensors(path: Path) -> list[Array]:
    weights = open_weights(path)
    found = [weights[name] for name in weights]
    for name in weights:
        assert sum(block.size for block in weights.blocks(name, values=7)) == math.prod(weights.shapes()[name])
    return found


def _whole(name: str, write: Callable[[Path], None]) -> bytes:
    path = PLACE / name
    write(path)
    return path.read_bytes()


SAMPLE = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([True]),
    "c": np.zeros((0, 2), np.int8),
}
INVENTORY = LayerInventory((LayerInfo("a", "linear", (3, 4), "mlp", True, False),), 12)
MANIFEST = Manifest("0", 0, {"pattern": "2:4"}, {}, {"a": Pattern("2:4")}, {"x.json": "00"})


@given(seeds)
def safetensors_files(number: int) -> None:
    whole = _whole("sample.safetensors", lambda path: save_tensors(path, SAMPLE, {"k": "v"}))
    read_damaged(number, PLACE / "damaged.safetensors", whole, _tensors)


@given(seeds)
def index_files(number: int) -> None:
    _whole("sample.safetensors", lambda path: save_tensors(path, SAMPLE))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(SAMPLE, "sample.safetensors")}
    read_damaged(number, PLACE / "damaged.safetensors.index.json", json.dumps(index).encode(), _tensors)


@given(seeds)
def packed_files(number: int) -> None:
    W = np.zeros((3, 8), np.float32)
    W[:, ::3] = 1
    whole = _whole("packed.safetensors", pack(W, "2:4").save)
    found = read_damaged(number, PLACE / "damaged-packed.safetensors", whole, Packed.load)
    if found is not None:
        found.unpack()
        attempt(False, nm_linear, found, np.ones((2, found.columns), np.float32))


@given(seeds)
def record_files(number: int) -> None:
    for record in (INVENTORY, MANIFEST):
        whole = _whole(f"{record.kind}.json", record.write)
        found = read_damaged(number, PLACE / f"damaged-{record.kind}.json", whole, type(record).read)
        assert record.kind != "manifest" or found in (None, MANIFEST), "a changed manifest was taken"


@given(seeds)
def recipe_files(number: int) -> None:
    whole = b'pattern = "2:4"\nscore = "wanda"\nskip = ["a.*"]\ndamping = 0.01\npermute = "residual"\npositions = 12\n'
    found = read_damaged(number, PLACE / "damaged.toml", whole, Recipe.load)
    if found is not None:
        assert Recipe.from_dict(found.to_dict()) == found


READERS = (pattern_strings, safetensors_files, index_files, packed_files, record_files, recipe_files)
