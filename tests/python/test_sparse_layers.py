"""Sparse layers compute what the dense ones do, with the weights they hold now, and look like them."""

from __future__ import annotations

import gc

import pytest
import torch
from pruned import mixed, prune
from torch import nn
from torch.autograd import forward_ad

from mpcore.masks import nm_mask
from mpcore.models import accelerate as module
from mpcore.models import sparse_ops
from mpcore.models.accelerate import accelerate
from mpcore.models.sparse_layers import SparseConv2d, SparseLinear
from mpcore.pattern import Pattern


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sparse layer counts as faster, so that no test depends on the clock."""
    monkeypatch.setattr(module, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(module, "LEAST_WHOLE", 0.0)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_compute_the_same_in_both_memory_formats(order: torch.memory_format, dtype: torch.dtype) -> None:
    model = mixed().to(dtype)
    x = torch.randn(2, 8, 13, 10).to(dtype).contiguous(memory_format=order)
    fast = accelerate(model, x)
    assert [row["backend"] for row in fast.report.rows()] == ["cpu"] * 5
    with torch.inference_mode():
        stem = fast.model.stem(x)
        torch.testing.assert_close(stem, model.stem(x), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)
        assert stem.is_contiguous(memory_format=order)
        assert fast.model(x[:0]).shape == (0, 4)
    assert fast.difference < (3e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(4, 16, 1, 1), (4, 16, 1, 2), (1, 16, 1, 5), (2, 16, 2, 2)])
def test_pointwise_convolutions_of_few_pixels_compute_the_same(
    shape: tuple[int, ...], stride: int, order: torch.memory_format
) -> None:
    # As behind a global pool: several images of one pixel each.
    layer = nn.Conv2d(16, 24, 1, stride=stride).eval()
    with torch.no_grad():
        layer.weight *= torch.from_numpy(nm_mask(layer.weight.abs().numpy(), "2:4", axis=1))
    x = torch.randn(shape).contiguous(memory_format=order)
    with torch.inference_mode():
        torch.testing.assert_close(accelerate(layer, x).model(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("always")
def test_export_sees_the_operators_and_computes_the_same() -> None:
    model, x = mixed("1:4"), torch.randn(2, 8, 13, 10)
    fast = accelerate(model, x).model
    with torch.no_grad():
        program = torch.export.export(fast, (x,))
        targets = [str(node.target) for node in program.graph.nodes]
        assert targets.count("mpcore.nm_conv2d.default") == 4
        assert targets.count("mpcore.nm_linear.default") == 1
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("always")
def test_the_code_torch_compiles_around_the_operators_computes_the_same() -> None:
    model = prune(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)), "2:4")
    x = torch.randn(5, 16)
    fast = accelerate(model, x).model
    assert sum(isinstance(layer, SparseLinear) for layer in fast.modules()) == 2
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("always")
def test_state_dicts_go_both_ways_between_a_model_and_its_accelerated_copy() -> None:
    model, other, x = mixed("1:4"), mixed("1:4", seed=1), torch.randn(2, 8, 13, 10)
    fast = accelerate(model, x).model
    assert sum(isinstance(layer, SparseLinear | SparseConv2d) for layer in fast.modules()) == 5
    stored = fast.state_dict()
    assert list(stored) == list(model.state_dict())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        fast(x)
        fast.load_state_dict(other.state_dict())
        torch.testing.assert_close(fast(x), other(x), rtol=1e-4, atol=1e-5)
        model.load_state_dict(fast.state_dict())
        assert torch.equal(model(x), other(x))


@pytest.mark.usefixtures("always")
def test_weights_that_a_sparse_layer_cannot_take_are_named() -> None:
    first, x = prune(nn.Sequential(nn.Linear(16, 8)), "2:4"), torch.randn(5, 16)
    fast, before = accelerate(first, x).model, first.state_dict()
    weight = before["0.weight"]
    for wrong, message in (
        (torch.ones(8, 16), r"0\.weight: .*2:4"),
        (weight[:, :8], r"0\.weight: shape \(8, 8\), wanted \(8, 16\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fast.load_state_dict({**before, "0.weight": wrong})
    with pytest.raises(RuntimeError, match=r'Missing key.* "0\.weight"'):
        fast.load_state_dict({"0.bias": before["0.bias"]})
    assert fast.load_state_dict({}, strict=False).missing_keys == ["0.bias", "0.weight"]
    assert torch.equal(fast[0].weight, weight)
    with torch.no_grad():
        again = accelerate(fast, x)
    assert again.report.rows() == []
    with pytest.raises(TypeError, match=r"take float32 and bfloat16, not torch\.float64"):
        fast.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added_exactly_and_as_it_is_now(dtype: torch.dtype) -> None:
    dense = prune(nn.Sequential(nn.Linear(16, 8)), "2:4")[0].to(dtype)
    layer, zeros = SparseLinear(dense, Pattern("2:4")), torch.zeros(3, 16, dtype=dtype)
    with torch.inference_mode():
        assert torch.equal(layer(zeros), dense.bias.expand(3, 8))
    layer.bias.mul_(2)
    with torch.inference_mode():
        assert torch.equal(layer(zeros), 2 * dense.bias.expand(3, 8))


def test_what_the_kernels_keep_goes_with_the_weights() -> None:
    layer = SparseLinear(prune(nn.Sequential(nn.Linear(16, 8)), "2:4")[0], Pattern("2:4"))
    gc.collect()
    before = len(sparse_ops._KERNELS)
    with torch.inference_mode():
        layer(torch.zeros(3, 16))
    assert len(sparse_ops._KERNELS) == before + 1
    del layer
    gc.collect()
    assert len(sparse_ops._KERNELS) == before


def test_operators_refuse_what_does_not_fit() -> None:
    layer = SparseLinear(prune(nn.Linear(16, 8), "2:4"), Pattern("2:4"))
    with pytest.raises(ValueError, match=r"x: shape \(2, 8\) gives 8 inputs, the weights have 16"):
        layer(torch.ones(2, 8))
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        layer(torch.ones(2, 16, dtype=torch.float64))


def linear() -> SparseLinear:
    torch.manual_seed(0)
    return SparseLinear(prune(nn.Sequential(nn.Linear(16, 8)), "2:4")[0], Pattern("2:4"))


def convolution() -> tuple[nn.Conv2d, SparseConv2d]:
    dense = mixed().stem
    return dense, SparseConv2d(dense, Pattern("2:4"))


@torch.no_grad()
def test_weights_written_after_the_first_product_are_used() -> None:
    x = torch.randn(3, 16)
    layer = linear()
    before = layer(x)
    layer.values.data = 2 * layer.values
    torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias))
    layer, other = linear(), linear()
    layer(x)
    for changed in (layer, other):
        changed.places.copy_(changed.places.flip(0))
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_a_state_dict_loaded_after_the_first_product_is_used(inference: bool, swap: bool) -> None:
    with torch.inference_mode(inference), torch.no_grad():
        layer, x = linear(), torch.randn(3, 16)
        layer(x)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        try:
            layer.load_state_dict({**layer.state_dict(), "weight": torch.zeros(8, 16)})
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        torch.testing.assert_close(layer(x), layer.bias.expand(3, 8))


def test_a_sparse_layer_shows_what_a_dense_one_does() -> None:
    dense = prune(nn.Sequential(nn.Linear(16, 8)), "2:4")[0]
    layer = SparseLinear(dense, Pattern("2:4"))
    assert torch.equal(layer.weight, dense.weight)
    assert layer.weight is layer.weight
    assert (layer.in_features, layer.out_features) == (16, 8)
    layer.weight.zero_()  # a copy: the layer keeps its weights
    assert torch.equal(layer.weight, dense.weight)
    layer.values.mul_(2)
    assert torch.equal(layer.weight, 2 * dense.weight)
    with pytest.raises(AttributeError):
        layer.weight = dense.weight.detach()
    conv, sparse = convolution()
    assert torch.equal(sparse.weight, conv.weight)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(sparse, name) == getattr(conv, name)


class Reads(nn.Module):
    """As Hugging Face's T5: looks at the dtype of the weight before every call."""

    def __init__(self) -> None:
        super().__init__()
        self.wo = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wo(x.to(self.wo.weight.dtype))


@pytest.mark.usefixtures("always")
def test_a_model_that_reads_a_weight_can_be_exported() -> None:
    model, x = prune(Reads(), "2:4"), torch.randn(3, 16)
    fast = accelerate(model, x).model
    assert isinstance(fast.wo, SparseLinear)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), model(x))
        torch.testing.assert_close(torch.compile(fast, backend="eager", fullgraph=True)(x), model(x))


def test_a_dtype_the_kernels_lack_leaves_the_layer_as_it_was() -> None:
    layer = linear()
    with pytest.raises(TypeError, match=r"not torch\.float16; the layers before this one may be converted already"):
        layer.half()
    assert [tensor.dtype for tensor in layer.buffers()] == [torch.float32, torch.uint8, torch.float32]
    converted = layer.type(torch.bfloat16)
    assert [tensor.dtype for tensor in converted.buffers()] == [torch.bfloat16, torch.uint8, torch.bfloat16]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtype_a_dense_layer_gives(dtype: torch.dtype) -> None:
    dense = prune(nn.Sequential(nn.Linear(16, 8)), "2:4")[0]
    layer, x = SparseLinear(dense, Pattern("2:4")), torch.randn(3, 16)
    with torch.autocast("cpu", dtype):
        found, expected = layer(x), dense(x)
        assert found.dtype == expected.dtype == layer(found.new_zeros(1, 16)).dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@torch.no_grad()
def test_an_image_alone_is_convolved_as_in_a_batch() -> None:
    dense, layer = convolution()
    x = torch.randn(8, 6, 7)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"x: shape \(1, 1, 8, 6, 7\), wanted \(images, channels, height, width\)"):
        layer(x[None, None])
    with pytest.raises(ValueError, match="x: 2 x 11 with its padding is smaller than the kernel, 3 x 3"):
        layer(torch.randn(1, 8, 0, 9))


def test_gradients_are_refused_with_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"no gradients: run the model under torch\.no_grad\(\)"):
        linear()(torch.randn(3, 16, requires_grad=True))


@pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning")  # torch's own, when it first sees a tangent
def test_a_tangent_is_refused_and_never_lost() -> None:
    layer, x = linear(), torch.randn(3, 16)
    with pytest.raises(RuntimeError, match="accelerated layers have no gradients"):
        torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="accelerated layers have no gradients"):
            layer(forward_ad.make_dual(x, torch.ones_like(x)))
        assert layer(x).shape == (3, 8)


def test_a_number_is_no_input() -> None:
    with pytest.raises(ValueError, match=r"x: shape \(\) gives 1 inputs, the weights have 16"):
        linear()(torch.tensor(1.0))


def test_a_sparse_layer_without_numbers_takes_them_from_a_state_dict() -> None:
    dense = prune(nn.Sequential(nn.Linear(16, 8)), "2:4")[0].requires_grad_(False)
    x, stored = torch.randn(3, 16), dense.state_dict()
    layer = SparseLinear(dense, Pattern("2:4")).to("meta")
    with pytest.raises(RuntimeError, match="x is on cpu, the weights are on meta"):
        layer(x)
    layer.load_state_dict(stored, assign=True)
    torch.testing.assert_close(layer(x), dense(x))
    empty = SparseLinear(dense, Pattern("2:4")).to("meta").to_empty(device="cpu")
    empty.places.fill_(255)
    empty.load_state_dict(stored)
    torch.testing.assert_close(empty(x), dense(x))
    half = {name: tensor.bfloat16() for name, tensor in stored.items()}
    layer.load_state_dict(half, assign=True)
    assert {name: tensor.dtype for name, tensor in layer.state_dict().items()} == dict.fromkeys(half, torch.bfloat16)
    for wrong, told in ((stored["weight"].numpy(), "a ndarray"), (stored["weight"].to("meta"), "a tensor on meta")):
        with pytest.raises(RuntimeError, match=f"weight: {told}"):
            layer.load_state_dict({**stored, "weight": wrong})
    seen = []
    layer.register_load_state_dict_pre_hook(lambda _, state, prefix, *__: seen.append(prefix + "weight" in state))
    layer.load_state_dict(stored)
    assert seen == [True]
