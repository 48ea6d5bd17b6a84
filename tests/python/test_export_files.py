"""Files that are damaged, masks that do not fit, and tensors that only look shared: named, or stored as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors
import torch
from pruned import prune
from safetensors.torch import load_file, save_file
from test_cli import complaint, document
from test_cli import run as command
from torch import Tensor, nn

from mpcore.models.compact import load_compact, save_compact
from mpcore.models.export import load_weights, save_model, state_sha256
from mpcore.models.onnx_check import eligible_24
from mpcore.models.onnx_file import to_onnx
from mpcore.models.sparse_layers import SparseLinear
from mpcore.pattern import Pattern

Damage = Callable[[dict[str, Any], dict[str, str]], object]


def net() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = prune(nn.Sequential(nn.Linear(16, 16)), "2:4")
    return model, {"0": model[0].weight != 0}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, _: tensors.pop("0.weight.bits"), r"lacks '0\.weight\.bits'"),
        (lambda tensors, _: tensors.pop("0.weight.values"), r"lacks '0\.weight\.values'"),
        (lambda _, metadata: metadata.pop("shapes"), "its shapes are ''"),
        (lambda _, metadata: metadata.update(shapes="zzz"), "its shapes are 'zzz'"),
        (lambda _, metadata: metadata.update(shapes='{"0.weight": 3}'), "its shapes are"),
        (lambda _, metadata: metadata.update(shared='{"a": "b"}'), "shared is .*, wanted names of tensors in the file"),
        (lambda _, metadata: metadata.update(shared="[1]"), "shared is"),
        (lambda _, metadata: metadata.update(shared="{"), "shared is"),
        (lambda t, _: t.update({"0.weight.bits": t["0.weight.bits"].float()}), r"'0\.weight' has .* torch\.float32"),
        (lambda t, _: t.update({"0.weight.bits": t["0.weight.bits"].repeat(2)}), r"'0\.weight' has .* for 256 weights"),
    ],
)
def test_a_damaged_compact_file_is_named(tmp_path: Path, damage: Damage, message: str) -> None:
    model, masks = net()
    path = tmp_path / "compact.safetensors"
    save_compact(model, masks, path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    damage(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=rf"compact\.safetensors: .*{message}"):
        load_compact(model, path)


@pytest.mark.parametrize("save", [save_model, save_compact])
def test_masks_may_be_arrays_and_must_have_a_layer(tmp_path: Path, save: Callable[..., None]) -> None:
    model, masks = net()
    save(model, {name: mask.numpy() for name, mask in masks.items()}, tmp_path / "arrays")
    save(model, masks, tmp_path / "tensors")
    stored, expected = load_file(tmp_path / "arrays"), load_file(tmp_path / "tensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in stored)
    save(model[0], {"": masks["0"]}, tmp_path / "layer")
    with pytest.raises(ValueError, match=r"masks: '7' has a mask, but the model has no '7\.weight'"):
        save(model, {"7": masks["0"]}, tmp_path / "none")


class Views(nn.Module):
    """Buffers over the same bytes that are not the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bits", torch.arange(4.0))
        self.register_buffer("integers", self.bits.view(torch.int32))
        self.register_buffer("wave", torch.tensor([1 + 2j, 3 - 1j]))
        self.register_buffer("mirrored", self.wave.conj())


def test_views_of_the_same_bytes_are_stored_as_they_are(tmp_path: Path) -> None:
    model = Views()
    save_model(model, {}, tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"bits", "integers", "wave", "mirrored"}
    other = load_weights(Views(), tmp_path / "a.safetensors")
    assert state_sha256(other) == state_sha256(model)
    assert torch.equal(other.mirrored, model.mirrored)


def test_an_accelerated_model_is_to_be_exported_before(tmp_path: Path) -> None:
    model = nn.Sequential(SparseLinear(net()[0][0], Pattern("2:4")))
    with pytest.raises(ValueError, match=r"layer 0: ONNX has no such sparse layer; export the model before accelerate"):
        to_onnx(model, torch.randn(2, 16), tmp_path / "a.onnx")


def test_doctor_calls_an_input_the_model_does_not_take_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef conv():\n    return nn.Conv2d(3, 8, 3)\n\n\ndef none():\n    return nn.ReLU()\n"
    )
    line = complaint(command("doctor", f"{tmp_path}/nets.py:conv", "--input", "3,16"))
    assert "--input '3,16': the model does not take inputs of shape (8, 3, 16)" in line
    found = document(command("doctor", f"{tmp_path}/nets.py:none", "--input", "3", "--json"))
    assert found["layers"] == []


class Spare(nn.Module):
    """A layer that evaluation does not use, and one whose output is a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.auxiliary, self.constant = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + self.constant(torch.ones(1, 16))


def test_layers_that_do_not_run_do_not_hinder_an_export(tmp_path: Path) -> None:
    model = prune(Spare(), "2:4").eval()
    path = to_onnx(model, torch.randn(2, 16), tmp_path / "a.onnx")
    assert [layer.layer for layer in eligible_24(path)] == ["used"]
    session, x = onnxruntime.InferenceSession(path), torch.randn(3, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


class Centred(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight - self.weight.mean(1, keepdim=True), self.bias)


def test_a_layer_that_fills_its_zeros_is_named(tmp_path: Path) -> None:
    model = prune(nn.Sequential(Centred(16, 8)), "2:4")
    with pytest.raises(
        ValueError, match=r"layer 0: its zeros are not in the .* a Centred multiplies by another weight"
    ):
        to_onnx(model, torch.randn(2, 16), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_names_inputs_it_cannot_take(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(16, 8)), torch.randn(1, 16)
    with pytest.raises(TypeError, match="example_input: a tuple, wanted one torch tensor"):
        to_onnx(model, (x, x), tmp_path / "a.onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(1, 16\), wanted two samples or more.*dynamic_batch=False"):
        to_onnx(model, x, tmp_path / "a.onnx")


class Paired(nn.Module):
    """Knows how many samples it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(2, 16) -> (2, 8)."""
        return self.layer(x.reshape(2, 4, 4).flatten(1))


class Asks(Paired):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Another way for another input: what torch.export cannot follow."""
        return self.layer(x if x.sum() > 0 else -x)


def test_a_model_of_one_batch_size_is_exported_with_that(tmp_path: Path) -> None:
    x = torch.randn(2, 16)
    with pytest.raises(ValueError, match=r"^Paired: its batch has one length only: dynamic_batch=False exports it so"):
        to_onnx(Paired(), x, tmp_path / "a.onnx")
    to_onnx(Paired(), x, tmp_path / "a.onnx", dynamic_batch=False)
    with pytest.raises(ValueError, match=r"^Asks: torch cannot export it \("):
        to_onnx(Asks(), x, tmp_path / "b.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
