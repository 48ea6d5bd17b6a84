from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcore import Packed, _native, nm_linear, nm_mask, pack, reference
from mpcore.models.apply import as_matrix

PATTERNS = [(2, 4), (1, 4), (4, 8), (8, 16), (1, 2), (3, 4), (5, 7), (1, 32), (12, 16)]

shapes = st.tuples(st.integers(1, 70), st.integers(1, 5), st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1))


def weights(rows: int, groups: int, pattern: tuple[int, int], seed: int = 0) -> np.ndarray:
    W = np.random.default_rng(seed).normal(size=(rows, groups * pattern[1])).astype(np.float32)
    return W * nm_mask(np.abs(W), pattern)


def rounded(array: np.ndarray) -> np.ndarray:
    """To bfloat16 and back."""
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


# pack


@settings(max_examples=40, deadline=None)
@given(shapes, st.floats(0, 1))
def test_packing_loses_nothing(shape, share):
    rows, groups, pattern, seed = shape
    W = weights(rows, groups, pattern, seed)
    W *= np.random.default_rng(seed).random(W.shape) < share  # some groups have fewer than N
    packed = pack(W, pattern)
    assert packed.values.shape == packed.places.shape == (rows, groups * pattern[0])
    assert (packed.shape, packed.dtype) == (W.shape, "float32")
    np.testing.assert_array_equal(packed.unpack(), W)
    assert (np.diff(packed.places.reshape(rows, groups, -1).astype(int), axis=2) > 0).all()


@settings(max_examples=25, deadline=None)
@given(shapes, st.booleans())
def test_a_file_holds_the_same_weights(tmp_path_factory, shape, half):
    rows, groups, pattern, seed = shape
    W = weights(rows, groups, pattern, seed)
    packed = pack(W.astype(ml_dtypes.bfloat16) if half else W, pattern)
    path = tmp_path_factory.mktemp("packed") / "layer.safetensors"
    packed.save(path)
    again = Packed.load(path)
    assert (again.shape, again.dtype, again.pattern) == (packed.shape, packed.dtype, packed.pattern)
    np.testing.assert_array_equal(again.values, packed.values)
    np.testing.assert_array_equal(again.places, packed.places)


@pytest.mark.parametrize("library", ["torch", "ml_dtypes"])
def test_bfloat16_is_stored_in_two_bytes_and_comes_back_exactly(library):
    W = rounded(weights(6, 3, (2, 4)))
    half = torch.from_numpy(W).bfloat16() if library == "torch" else W.astype(ml_dtypes.bfloat16)
    packed = pack(half, "2:4")
    assert (packed.dtype, packed.values.dtype) == ("bfloat16", np.uint16)
    np.testing.assert_array_equal(packed.unpack(), W)


def test_a_mask_decides_what_is_packed():
    W = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    mask = nm_mask(np.abs(W), "2:4")
    np.testing.assert_array_equal(pack(W, "2:4", mask=mask).unpack(), W * mask)
    np.testing.assert_array_equal(pack(W, "2:4", mask=torch.from_numpy(mask)).unpack(), W * mask)


def test_on_disk_a_place_takes_only_the_bits_it_needs(tmp_path):
    packed = pack(weights(64, 8, (8, 16)), "8:16")
    packed.save(tmp_path / "layer.safetensors")
    places = safetensors.numpy.load_file(tmp_path / "layer.safetensors")["places"]
    assert places.nbytes == packed.places.nbytes // 2


@pytest.mark.parametrize(
    ("W", "extra", "message"),
    [
        (np.ones((4, 8), np.float32), {}, "W: row 0, group 0 keeps 4 of 4, pattern 2:4 allows 2"),
        (np.zeros((4, 7), np.float32), {}, "W: 7 columns is not a multiple of group = 4"),
        (np.full((1, 4), np.inf, np.float32), {}, r"W: entry \(0, 0\) is inf"),
        (np.ones((1, 4), np.float32), {"mask": np.ones((1, 4), bool)}, "mask: row 0, group 0 keeps 4 of 4"),
        (np.ones((1, 4), np.float32), {"mask": np.ones((1, 8), bool)}, r"mask: shape \(1, 8\), wanted \(1, 4\)"),
    ],
)
def test_weights_that_cannot_be_packed_are_named(W, extra, message):
    with pytest.raises(ValueError, match=message):
        pack(W, "2:4", **extra)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8])
def test_only_float32_and_bfloat16_are_packed(dtype):
    with pytest.raises(TypeError, match=r"is not float32 or bfloat16; use W\.astype\(numpy\.float32\)"):
        pack(np.zeros((1, 4), dtype), "2:4")
    with pytest.raises(TypeError, match=r"W: dtype float64 is not float32 or bfloat16; use W\.float\(\)"):
        pack(torch.zeros(1, 4, dtype=torch.float64), "2:4")
    with pytest.raises(TypeError, match=r"W: list is no array; use numpy\.asarray\(W, numpy\.float32\)"):
        pack([[0.0, 0.0, 1.0, 0.0]], "2:4")


def test_the_weight_of_a_convolution_is_packed_as_its_matrix_view():
    conv = torch.nn.Conv2d(4, 6, 3)
    with pytest.raises(ValueError, match=r"pass its matrix view W\.permute\(0, 2, 3, 1\)\.reshape\(len\(W\), -1\)"):
        pack(conv.weight, "2:4")
    W = conv.weight.detach().numpy()
    with pytest.raises(ValueError, match=r"matrix view W\.transpose\(0, 2, 3, 1\)\.reshape\(len\(W\), -1\), C fastest"):
        pack(W, "2:4")
    view = W.transpose(0, 2, 3, 1).reshape(len(W), -1)
    np.testing.assert_array_equal(view, as_matrix(conv.weight))
    mask = nm_mask(np.abs(view), "2:4")
    np.testing.assert_array_equal(pack(view, "2:4", mask=mask).unpack(), view * mask)


def test_bytes_of_the_other_order_give_the_same_product():
    W, X = weights(5, 3, (2, 4)), np.random.default_rng(1).normal(size=(7, 12)).astype(np.float32)
    swapped = pack(W.astype(">f4"), "2:4")
    np.testing.assert_array_equal(swapped.unpack(), W)
    found = nm_linear(swapped, X.astype(">f4"), bias=np.ones(5, ">f8"))
    np.testing.assert_array_equal(found, nm_linear(pack(W, "2:4"), X, bias=np.ones(5)))
    assert found.dtype.isnative


def test_a_file_that_is_something_else_or_damaged_is_refused(tmp_path):
    path = tmp_path / "layer.safetensors"
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match=r"layer.safetensors: format None is not 'mpcore-packed-1'"):
        Packed.load(path)
    pack(weights(3, 2, (3, 5)), "3:5").save(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        values, places, metadata = file.get_tensor("values"), file.get_tensor("places"), file.metadata()
    damage = [
        ({"values": values, "places": np.full_like(places, 255)}, metadata, "place 7 is outside its group of 5"),
        ({"values": values[:2], "places": places}, metadata, "are no 3:5 of 3 x 10"),
        ({"values": values.astype(np.float64), "places": places}, metadata, "values float64"),
        ({"values": values}, metadata, "places"),
        ({"values": values, "places": places}, {**metadata, "pattern": "5:3"}, "pattern 5:3"),
    ]
    for tensors, words, message in damage:
        safetensors.numpy.save_file(tensors, path, words)
        with pytest.raises(ValueError, match=message):
            Packed.load(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"layer\.safetensors"):
        Packed.load(path)


# nm_linear


@settings(max_examples=40, deadline=None)
@given(
    shapes,
    st.sampled_from([0, 1, 2, 15, 16, 17, 64, 65, 130, 197]),
    st.sampled_from([None, "relu", "gelu"]),
    st.booleans(),
)
def test_the_product_is_the_dense_one(shape, tokens, activation, with_bias):
    rows, groups, pattern, seed = shape
    rng = np.random.default_rng(seed)
    W = weights(rows, groups, pattern, seed)
    X = rng.normal(size=(tokens, W.shape[1])).astype(np.float32)
    bias = rng.normal(size=rows) if with_bias else None
    out = nm_linear(pack(W, pattern), X, bias=bias, activation=activation)
    wanted = reference.nm_linear(W, X, bias, activation)
    assert (out.shape, out.dtype) == (wanted.shape, np.float32)
    scale = np.abs(X) @ np.abs(W).T + 1
    assert (np.abs(out - wanted) <= 1e-6 * scale).all()


def test_any_strides_and_any_number_of_threads_give_the_same_bits():
    packed = pack(weights(130, 24, (2, 4)), "2:4")
    X = np.random.default_rng(0).normal(size=(99, 96)).astype(np.float32)
    out = nm_linear(packed, X)
    for same in (np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], torch.from_numpy(X)):
        np.testing.assert_array_equal(np.asarray(nm_linear(packed, same)), out)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(nm_linear(packed, X, threads=threads), out)


def test_a_token_does_not_depend_on_the_others_and_hardly_on_their_number():
    packed = pack(weights(40, 6, (4, 8)), "4:8")
    X = np.random.default_rng(0).normal(size=(70, 48)).astype(np.float32)
    one, many = nm_linear(packed, X[33:34]), nm_linear(packed, X)
    np.testing.assert_array_equal(nm_linear(packed, X[20:50])[13], many[33])
    np.testing.assert_array_equal(nm_linear(packed, X[32:34])[1:], one)
    np.testing.assert_allclose(one[0], many[33], rtol=0, atol=1e-5)


def test_bfloat16_weights_round_the_inputs_and_sum_in_float32():
    W, X = rounded(weights(20, 12, (2, 4))), np.random.default_rng(0).normal(size=(30, 48)).astype(np.float32)
    packed = pack(W.astype(ml_dtypes.bfloat16), "2:4")
    out = nm_linear(packed, X)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, nm_linear(pack(W, "2:4"), rounded(X)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_in_tensor_out(dtype):
    W = weights(20, 12, (2, 4))
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 48))).to(dtype).requires_grad_()
    out = nm_linear(pack(W, "2:4"), X, bias=torch.ones(20))
    assert isinstance(out, torch.Tensor)
    assert (out.dtype, out.shape, out.requires_grad) == (dtype, (30, 20), False)
    wanted = torch.nn.functional.linear(X.detach().double(), torch.from_numpy(W).double(), torch.ones(20).double())
    torch.testing.assert_close(out.double(), wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)


def test_ml_dtypes_in_ml_dtypes_out():
    X = np.ones((3, 8), ml_dtypes.bfloat16)
    out = nm_linear(pack(weights(4, 2, (2, 4)), "2:4"), X)
    assert out.dtype == ml_dtypes.bfloat16


def test_gelu_is_that_of_torch():
    packed = pack(np.array([[1, 0]], np.float32), "1:2")
    y = np.linspace(-12, 12, 4001, dtype=np.float32)
    out = nm_linear(packed, np.stack([y, y], axis=1), activation="gelu")[:, 0]
    wanted = torch.nn.functional.gelu(torch.from_numpy(y).double()).numpy()
    assert np.abs(out - wanted).max() < 1e-6


def test_values_that_are_not_finite_pass_where_a_weight_is_kept():
    packed = pack(np.array([[1, 0, 0, 1]], np.float32), "2:4")
    X = np.array([[np.nan, 0, 0, 0], [0, np.inf, 0, 2]], np.float32)
    out = nm_linear(packed, X)
    assert np.isnan(out[0, 0])
    assert out[1, 0] == 2


@pytest.mark.parametrize(
    ("X", "extra", "message"),
    [
        (np.ones((2, 9), np.float32), {}, r"X: shape \(2, 9\), wanted \(T, 8\)"),
        (np.ones(8, np.float32), {}, r"X: shape \(8,\), wanted \(T, 8\)"),
        (np.ones((2, 8), np.float32), {"bias": np.ones(3)}, "bias: 3 values, wanted 4"),
        (np.ones((2, 8), np.float32), {"activation": "silu"}, "activation \"silu\": wanted None, 'gelu' or 'relu'"),
        (np.ones((2, 8), np.float32), {"threads": 0}, "threads: 0 is not an integer between 1 and 1024"),
    ],
)
def test_arguments_that_do_not_fit_are_named(X, extra, message):
    with pytest.raises(ValueError, match=message):
        nm_linear(pack(weights(4, 2, (2, 4)), "2:4"), X, **extra)


def test_swapped_arguments_are_named():
    packed = pack(weights(4, 2, (2, 4)), "2:4")
    with pytest.raises(TypeError, match=r"packed: ndarray is not what mpcore\.pack returns; call nm_linear\(packed"):
        nm_linear(np.ones((2, 8), np.float32), packed)


def test_inputs_of_another_dtype_are_refused():
    with pytest.raises(TypeError, match=r"X: dtype float64 is not float32 or bfloat16; use X\.astype\("):
        nm_linear(pack(weights(4, 2, (2, 4)), "2:4"), np.ones((2, 8)))


# kernels


@pytest.mark.parametrize("name", _native.instruction_sets())
@pytest.mark.parametrize("pattern", [(2, 4), (8, 16), (5, 7), (1, 32)])
def test_every_instruction_set_of_this_cpu_gives_the_same_product(monkeypatch, name, pattern):
    monkeypatch.setenv("MPCORE_KERNELS", name)
    rng = np.random.default_rng(0)
    W = weights(70, 11, pattern)
    for tokens in (1, 5, 30, 120):
        X = rng.normal(size=(tokens, W.shape[1])).astype(np.float32)
        out = nm_linear(pack(W, pattern), X)
        scale = np.abs(X) @ np.abs(W).T + 1
        assert (np.abs(out - reference.nm_linear(W, X)) <= 1e-6 * scale).all()


def test_an_instruction_set_this_cpu_lacks_is_refused(monkeypatch):
    monkeypatch.setenv("MPCORE_KERNELS", "sse9")
    with pytest.raises(ValueError, match='MPCORE_KERNELS: "sse9" is not one of portable'):
        nm_linear(pack(weights(4, 2, (2, 4)), "2:4"), np.ones((1, 8), np.float32))


def test_packed_weights_that_were_used_are_pickled_without_their_kernel():
    packed = pack(weights(9, 3, (2, 4)), "2:4")
    X = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    out = nm_linear(packed, X)
    again = pickle.loads(pickle.dumps(packed))
    assert "kernel" not in vars(again)
    np.testing.assert_array_equal(nm_linear(again, X), out)


FORK = """
import os, numpy as np, torch
from mpcore import nm_linear, nm_mask, pack
W = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
packed = pack(W * nm_mask(np.abs(W), "2:4"), "2:4")
X = torch.randn(200, 64)
torch.set_num_threads(2)
X @ torch.randn(64, 64)
out = nm_linear(packed, X)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(nm_linear(packed, X), out) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_of_fork_computes_the_same():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["0"]


def test_packed_arrays_cannot_be_written_to():
    packed = pack(weights(4, 2, (2, 4)), "2:4")
    for again in (packed, pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        for array in (again.values, again.places):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
