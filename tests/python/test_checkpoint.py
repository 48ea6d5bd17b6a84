"""Safetensors are read exactly as the format's own library reads them, and nothing malformed gets through."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save, save_file

from mpcore.checkpoint import open_weights, save_tensors, sha256, sha256_arrays

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32]
TENSORS = st.dictionaries(
    st.text(st.characters(categories=["L", "N"], include_characters="._"), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.sampled_from([*DTYPES, np.uint64, np.bool_]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    max_size=5,
)


def raw(path: Path, header: Any, body: bytes = b"") -> Path:
    """A file with this header (text or JSON) and these bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


@given(tensors=TENSORS)
@settings(max_examples=60, deadline=None)
def test_reads_what_the_formats_library_writes(tmp_path_factory: pytest.TempPathFactory, tensors: dict) -> None:
    path = tmp_path_factory.mktemp("read") / "a.safetensors"
    path.write_bytes(save(tensors))
    weights = open_weights(path)
    assert set(weights) == set(tensors)
    assert all(same(weights[name], array) for name, array in tensors.items())
    assert weights.shapes() == {name: array.shape for name, array in tensors.items()}


@given(tensors=TENSORS)
@settings(max_examples=60, deadline=None)
def test_the_formats_library_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, tensors: dict) -> None:
    path = tmp_path_factory.mktemp("write") / "a.safetensors"
    save_tensors(path, tensors, {"b": "2", "a": "1"})
    found = load_file(path)
    assert set(found) == set(tensors)
    assert all(same(found[name], array) for name, array in tensors.items())
    assert open_weights(path).metadata == {"a": "1", "b": "2"}


def test_equal_content_gives_equal_bytes_in_any_order_and_strides(tmp_path: Path) -> None:
    a, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(3, bool)
    save_tensors(tmp_path / "x", {"a": a, "b": b}, {"p": "1", "q": "2"})
    save_tensors(tmp_path / "y", {"b": b, "a": np.asfortranarray(a)}, {"q": "2", "p": "1"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert sha256(tmp_path / "x") == sha256(tmp_path / "y")


def test_big_endian_arrays_are_stored_little_endian(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": np.array([1.5, -2.0], ">f4")})
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1.5, -2.0]


def test_bfloat16_becomes_float32_exactly(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    header = {"a": entry([256, 256], 0, 2**17, "BF16")}
    found = open_weights(raw(tmp_path / "a.safetensors", header, bits.tobytes()))["a"]
    wanted = bits.view(ml_dtypes.bfloat16).astype(np.float32).reshape(256, 256)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_every_tensor_is_memory_of_its_own(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    weights = open_weights(tmp_path / "a.safetensors")
    weights["a"][:] = 1
    assert weights["a"].tolist() == [0, 0, 0]


def test_a_sharded_checkpoint_reads_like_one_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x-1.safetensors", {"a": np.zeros(2), "b": np.ones(2)})
    save_tensors(tmp_path / "x-2.safetensors", {"c": np.full(2, 2.0)})
    index = {"metadata": {"total_size": 48}, "weight_map": {n: f"x-{1 + (n == 'c')}.safetensors" for n in "abc"}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "x.safetensors.index.json"):
        weights = open_weights(path)
        assert {name: weights[name].tolist() for name in weights} == {"a": [0, 0], "b": [1, 1], "c": [2, 2]}
        assert weights.metadata == {"total_size": "48"}


def test_a_folder_means_its_model_file(tmp_path: Path) -> None:
    for name in ("masks", "model"):
        save_tensors(tmp_path / f"{name}.safetensors", {name: np.zeros(1)})
    assert list(open_weights(tmp_path)) == ["model"]


def test_a_folder_with_several_equal_candidates_is_ambiguous(tmp_path: Path) -> None:
    for name in "ab":
        save_tensors(tmp_path / f"{name}.safetensors", {name: np.zeros(1)})
    with pytest.raises(ValueError, match=r"a\.safetensors, b\.safetensors; name the one you mean"):
        open_weights(tmp_path)


def test_an_empty_folder_and_a_missing_file_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file"):
        open_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_weights(tmp_path / "a.safetensors")


ONE = {"a": entry([2], 0, 8)}
MALFORMED = {
    "empty file": (b"", "not a safetensors file"),
    "four bytes": (b"abcd", "not a safetensors file"),
    "text": (b"hello, this is text", "not a safetensors file"),
    "huge header": ((2**62).to_bytes(8, "little") + b"{}", "header of 4611686018427387904 bytes"),
    "header past the end": ((40).to_bytes(8, "little") + b'{"a":{"dtype":"F32"', "cut short"),
    "no JSON": (b"\2\0\0\0\0\0\0\0{]", "the header is not JSON"),
    "no UTF-8": (b"\2\0\0\0\0\0\0\0\xff\xff", "the header is not JSON"),
    "a list": (b"\2\0\0\0\0\0\0\0[]", "not a JSON object"),
    "deep nesting": ((10**6).to_bytes(8, "little") + b"[" * 10**6, "nested too deeply"),
}
HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "cut body": (ONE, b"\0" * 7, "cut short: tensor 'a' ends at byte"),
    "bytes behind": (ONE, b"\0" * 9, "1 bytes after the last tensor"),
    "duplicate key": (b'{"a":1,"a":2}', b"", "the key 'a' occurs twice"),
    "overlap": ({**ONE, "b": entry([2], 4, 12)}, b"\0" * 12, "'b' overlaps the tensor before it"),
    "gap": ({**ONE, "b": entry([2], 9, 17)}, b"\0" * 17, "'b' leaves a gap before it"),
    "same place": ({**ONE, "b": entry([2], 0, 8)}, b"\0" * 8, "overlaps"),
    "unknown dtype": ({"a": entry([2], 0, 8, "F31")}, b"\0" * 8, "unknown dtype 'F31'"),
    "dtype a list": ({"a": {**ONE["a"], "dtype": ["F32"]}}, b"\0" * 8, "unknown dtype"),
    "shape against bytes": ({"a": entry([3], 0, 8)}, b"\0" * 8, r"F32 of shape \(3,\) needs 12 bytes"),
    "negative length": ({"a": entry([-2], 0, 8)}, b"\0" * 8, "is not a list of at most 32 lengths"),
    "boolean length": ({"a": entry([True], 0, 4)}, b"\0" * 4, "is not a list of at most 32 lengths"),
    "float length": ({"a": entry([2.0], 0, 8)}, b"\0" * 8, "is not a list of at most 32 lengths"),
    "overflowing shape": ({"a": entry([2**62, 4, 0], 0, 0)}, b"", "is not a list of at most 32 lengths"),
    "too many axes": ({"a": entry([1] * 33, 0, 4)}, b"\0" * 4, "is not a list of at most 32 lengths"),
    "huge offset": ({"a": entry([2**59], 0, 2**61)}, b"\0" * 8, "cut short"),
    "descending offsets": ({"a": entry([0], 8, 0)}, b"\0" * 8, "not two ascending numbers"),
    "three offsets": ({"a": {**ONE["a"], "data_offsets": [0, 8, 8]}}, b"\0" * 8, "not two ascending numbers"),
    "no entry": ({"a": 3}, b"", "does not hold exactly dtype, shape and data_offsets"),
    "extra field": ({"a": {**ONE["a"], "x": 1}}, b"\0" * 8, "does not hold exactly"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not a table of strings"),
    "control characters": ({"a\x1b[2J": entry([2], 0, 8)}, b"\0" * 8, "not printable text"),
    "lone surrogate": (b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8, "not printable"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    content, message = MALFORMED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header_is_one_line_that_names_the_file(tmp_path: Path, case: str) -> None:
    header, body, message = HEADERS[case]
    path = raw(tmp_path / "bad.safetensors", header, body)
    with pytest.raises(ValueError, match=message) as caught:
        open_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_file_with_changed_bytes_is_read_or_refused_but_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(save({"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 2), bool)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    refusal = str(path)
    try:
        for array in open_weights(path).values():
            assert array.size <= len(content)
    except ValueError as error:
        refusal = str(error)
    assert str(path) in refusal


def test_a_boolean_byte_of_two_is_refused(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", {"a": entry([2], 0, 2, "BOOL")}, b"\0\2")
    with pytest.raises(ValueError, match="a BOOL byte is neither 0 nor 1"):
        open_weights(path)["a"]


def test_a_file_that_shrinks_after_opening_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": np.zeros(100)})
    weights = open_weights(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="of 100 values; the file was cut short"):
        weights["a"]


def test_float8_is_listed_but_not_read(tmp_path: Path) -> None:
    weights = open_weights(raw(tmp_path / "a.safetensors", {"a": entry([4], 0, 4, "F8_E4M3")}, b"\0" * 4))
    assert weights.dtypes() == {"a": "F8_E4M3"}
    with pytest.raises(ValueError, match="convert it to bfloat16 or wider first"):
        weights["a"]


def test_an_unknown_name_is_a_key_error_with_the_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(1)})
    with pytest.raises(KeyError, match=r"a\.safetensors: no tensor 'b'"):
        open_weights(tmp_path / "a.safetensors")["b"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl", ".safetensors", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_with_the_way_to_convert_it_and_never_run(
    tmp_path: Path, suffix: str, zipped: bool
) -> None:
    evil = Evil()
    evil.target = tmp_path / "owned"  # type: ignore[attr-defined]
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps(evil))
    if zipped:
        with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
            archive.write(path, "data.pkl")
        (tmp_path / "archive").replace(path)
    with pytest.raises(ValueError, match=r"never opened here.*weights_only=True"):
        open_weights(path)
    assert not (tmp_path / "owned").exists()


def test_a_header_whose_length_looks_like_a_pickle_still_opens(tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": {"pad": ""}})
    text = json.dumps({"__metadata__": {"pad": "x" * (0x280 - len(text))}})
    path = raw(tmp_path / "a.safetensors", text.encode())
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert len(open_weights(path)) == 0


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "not a JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "is not the name of a file beside the index"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "is not the name of a file beside the index"),
        ('{"weight_map": {"a": ".."}}', "is not the name of a file beside the index"),
        ('{"weight_map": {"a": 3}}', "is not the name of a file beside the index"),
        ('{"weight_map": {"b": "x.safetensors"}}', "tensor 'b' is not in x.safetensors"),
    ],
)
def test_an_index_cannot_leave_its_folder_or_name_what_is_not_there(tmp_path: Path, index: str, message: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    save_file({"a": np.zeros(1)}, tmp_path / "secret.safetensors")
    save_file({"a": np.zeros(1)}, folder / "x.safetensors")
    (folder / "x.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        open_weights(folder)


def test_an_index_that_names_a_missing_file_says_which(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors.index.json").write_text('{"weight_map": {"a": "y.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"y\.safetensors: no such file, though x\.safetensors\.index\.json"):
        open_weights(tmp_path)


def test_an_index_whose_shard_is_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "y.bin").write_bytes(pickle.dumps({}))
    (tmp_path / "x.safetensors.index.json").write_text('{"weight_map": {"a": "y.bin"}}')
    with pytest.raises(ValueError, match="never opened here"):
        open_weights(tmp_path)


def test_a_dtype_that_the_format_lacks_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="tensor 'a' has dtype complex64"):
        save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(2, np.complex64)})
    assert list(tmp_path.iterdir()) == []


def test_hashes_tell_dtype_shape_and_content_apart() -> None:
    arrays = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32), np.zeros(2), np.ones(2)]
    assert len({sha256_arrays([array]) for array in arrays}) == len(arrays)
    assert sha256_arrays(arrays) == sha256_arrays([np.asfortranarray(array) for array in arrays])


def test_in_a_folder_with_an_index_too_the_whole_file_is_meant(tmp_path: Path) -> None:
    for name, value in (("model", 1.0), ("old", 2.0)):
        save_tensors(tmp_path / f"{name}.safetensors", {"up.weight": np.full((2, 4), value)})
    places = {"metadata": {}, "weight_map": {"up.weight": "old.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(places))
    assert open_weights(tmp_path)["up.weight"][0, 0] == 1.0
