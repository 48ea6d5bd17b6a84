"""Weights out and in: exact zeros, shared tensors, honest refusals, and ONNX that runs to the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from helpers import write_run
from nets import TinyConvNet, images, tiny_vit
from safetensors.torch import load_file, save_file
from test_cli import document
from test_cli import run as command
from torch import nn

from mpcore.folder import hashes
from mpcore.masks import nm_mask
from mpcore.models.apply import hold_masks, layer_of
from mpcore.models.compact import load_compact, save_compact
from mpcore.models.export import load, load_weights, save_model, state_sha256
from mpcore.models.onnx_check import eligible_24
from mpcore.models.onnx_file import _check_zeros, to_onnx
from mpcore.records import Manifest


def masked(model: nn.Module, names: tuple[str, ...]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    masks = {n: torch.from_numpy(nm_mask(layer_of(model, n).weight.abs(), "2:4", axis=1)) for n in names}
    hold_masks(model, masks)
    return model, masks


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight


def finished(folder: Path, model: nn.Module, **fields: Any) -> Path:
    """The least folder that ``load`` takes for a run."""
    save_model(model, {}, folder / "model.safetensors")
    values: dict[str, Any] = {"version": "0", "seed": 0, "recipe": {}, "source": {}, "patterns": {}}
    values["files"] = hashes(folder)
    Manifest(**{**values, **fields}).write(folder / "manifest.json")
    return folder


def test_pruned_weights_are_stored_as_plus_zero_and_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, masks = masked(TinyConvNet(), ("tail.0", "blocks.0._project_conv"))
    weight = layer_of(model, "tail.0").weight
    with torch.no_grad():
        weight[~masks["tail.0"]] = -0.0
    save_model(model, masks, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")["tail.0.weight"]
    assert torch.equal(stored, weight.detach())
    assert not torch.signbit(stored[~masks["tail.0"]]).any()
    other = load_weights(TinyConvNet(seed=9), tmp_path / "model.safetensors")
    assert torch.equal(other(images(2)), model(images(2)))


def test_a_weight_that_is_not_zero_under_its_mask_is_refused(tmp_path: Path) -> None:
    model, masks = masked(TinyConvNet(), ("tail.0",))
    with torch.no_grad():
        layer_of(model, "tail.0").weight.fill_(1.0)
    with pytest.raises(ValueError, match=r"layer tail\.0: 576 weights are not zero"):
        save_model(model, masks, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_tied_tensors_are_stored_once_and_pruned_ones_are_refused(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "tied.safetensors"
    save_model(model, {}, path)
    assert list(load_file(path)) == ["first.weight"]
    assert state_sha256(load_weights(Tied(), path)) == state_sha256(model)
    with pytest.raises(ValueError, match=r"layer second: .*first\.weight and second\.weight are one tensor"):
        save_model(model, {"second": torch.ones(8, 8, dtype=torch.bool)}, path)


def test_a_run_builds_its_own_model(tmp_path: Path) -> None:
    source = {
        "timm": "vit_tiny_patch16_224",
        "kwargs": {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10},
    }
    source["kwargs"] |= {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}  # type: ignore[operator]
    model = tiny_vit(4)
    finished(tmp_path, model, source=source)
    x = images(2, channels=1, size=8)
    assert torch.equal(load(tmp_path)(x), model(x))
    assert torch.equal(load(tmp_path, tiny_vit(5))(x), model(x))


def test_the_student_is_preferred_once_the_manifest_vouches_for_it(tmp_path: Path) -> None:
    pruned, student = TinyConvNet(1), TinyConvNet(2)
    finished(tmp_path, pruned)
    save_model(student, {}, tmp_path / "student.safetensors")
    assert state_sha256(load(tmp_path, TinyConvNet())) == state_sha256(pruned)
    finished(tmp_path, pruned)
    assert state_sha256(load(tmp_path, TinyConvNet())) == state_sha256(student)
    assert state_sha256(load(tmp_path, TinyConvNet(), which="model")) == state_sha256(pruned)
    with pytest.raises(FileNotFoundError, match=r"dense\.safetensors: no such file in this run"):
        load(tmp_path, TinyConvNet(), which="dense")
    with pytest.raises(ValueError, match="which = 'teacher'"):
        load(tmp_path, TinyConvNet(), which="teacher")


def test_a_network_that_has_changed_since_the_run_was_sealed_is_refused(tmp_path: Path) -> None:
    file = finished(tmp_path, TinyConvNet()) / "model.safetensors"
    stored = bytearray(file.read_bytes())
    stored[-1] ^= 1
    file.write_bytes(stored)
    with pytest.raises(ValueError, match=r"model\.safetensors: has changed since the run was sealed"):
        load(tmp_path, TinyConvNet())
    manifest = (tmp_path / "manifest.json").read_text().replace('"seed": 0', '"seed": 1')
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=r"manifest\.json: has changed since it was written"):
        load(tmp_path, TinyConvNet())


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing"):
        load(tmp_path)
    finished(tmp_path, TinyConvNet())
    with pytest.raises(ValueError, match="pass model="):
        load(tmp_path)
    with pytest.raises(ValueError, match="does not fit a VisionTransformer"):
        load(write_run(tmp_path / "other"), tiny_vit())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "fc", nn.Linear(24, 11)), r"'fc.*wants torch\.float32 \(11"),
        (lambda m: setattr(m, "fc", nn.Identity()), r"also holds 'fc\.bias'"),
        (lambda m: setattr(m, "more", nn.Linear(2, 2)), r"lacks 'more\.bias'"),
        (lambda m: m.double(), r"is torch\.float32 .*, the model wants torch\.float64"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    save_model(TinyConvNet(), {}, tmp_path / "a.safetensors")
    other = TinyConvNet()
    change(other)
    with pytest.raises(ValueError, match=message):
        load_weights(other, tmp_path / "a.safetensors")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_model(TinyConvNet(), {}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.safetensors: not a whole safetensors file"):
        load_weights(TinyConvNet(), tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_compact_file_is_lossless_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model, masks = masked(TinyConvNet(), ("tail.0", "blocks.1._project_conv"))
    model.to(dtype)
    save_compact(model, masks, tmp_path / "compact.safetensors")
    other = load_compact(TinyConvNet(seed=3).to(dtype), tmp_path / "compact.safetensors")
    assert state_sha256(other) == state_sha256(model)


def test_a_compact_file_holds_half_the_values_and_a_bit_for_each_weight(tmp_path: Path) -> None:
    model, masks = masked(nn.Sequential(nn.Linear(512, 256, bias=False)), ("0",))
    save_compact(model, masks, tmp_path / "compact.safetensors")
    stored = load_file(tmp_path / "compact.safetensors")
    assert {name: tensor.nbytes for name, tensor in stored.items()} == {
        "0.weight.values": 512 * 256 * 2,
        "0.weight.bits": 512 * 256 // 8,
    }


def test_a_compact_file_that_is_none_is_refused(tmp_path: Path) -> None:
    model, masks = masked(TinyConvNet(), ("tail.0",))
    path = tmp_path / "a.safetensors"
    save_model(model, masks, path)
    with pytest.raises(ValueError, match="format 'pt' is not 'mpcore-compact-1'"):
        load_compact(TinyConvNet(), path)
    save_compact(model, masks, path)
    tensors = load_file(path)
    tensors["tail.0.weight.bits"][0] ^= 1
    with safetensors.safe_open(path, framework="pt") as file:
        save_file(tensors, path, metadata=file.metadata())
    with pytest.raises(ValueError, match=r"'tail\.0\.weight' has 576 values and 57[57] bits set of 1152"):
        load_compact(TinyConvNet(), path)


def test_onnx_keeps_the_zeros_and_computes_the_same_for_any_batch(tmp_path: Path) -> None:
    model, _ = masked(tiny_vit(), ("blocks.0.mlp.fc1", "blocks.1.attn.qkv", "head"))
    path = to_onnx(model, images(2, channels=1, size=8), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    x = images(3, channels=1, size=8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.allclose(found, model(x).detach().numpy(), atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_lost_zero_is_noticed() -> None:
    model, _ = masked(nn.Sequential(nn.Linear(8, 4)), ("0",))
    weight = layer_of(model, "0").weight.detach().numpy()
    _check_zeros(model, {"w": weight.T}, {"0.weight"})
    _check_zeros(model, {}, ())
    with pytest.raises(ValueError, match="layer 0: its zeros are not in the exported file"):
        _check_zeros(model, {"w": weight + 1}, {"0.weight"})


def eligibility(path: Path) -> dict[str, str]:
    """Layer -> why TensorRT would run it dense; empty where it would not."""
    return {layer.layer: layer.reason for layer in eligible_24(path)}


def test_the_layers_that_are_24_in_the_file_are_eligible_and_no_others(tmp_path: Path) -> None:
    pruned = ("blocks.0.mlp.fc1", "blocks.1.attn.qkv", "blocks.1.attn.proj", "head")
    model, _ = masked(tiny_vit(), pruned)
    found = eligibility(to_onnx(model, images(2, channels=1, size=8), tmp_path / "vit.onnx"))
    assert {name for name, reason in found.items() if not reason} == set(pruned)
    assert set(found) == {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    assert found["patch_embed.proj"] == "1 input channels is not a multiple of 4"
    assert found["blocks.0.mlp.fc2"] == "512 of 512 groups keep more than 2 of 4"


def test_convolutions_are_judged_along_their_input_channels(tmp_path: Path) -> None:
    model, _ = masked(TinyConvNet(), ("tail.0", "blocks.1._project_conv"))
    layers = eligible_24(to_onnx(model, images(2), tmp_path / "net.onnx"))
    shapes = {layer.layer: layer.shape for layer in layers if layer.eligible}
    assert shapes == {"tail.0": (16, 8, 3, 3), "blocks.1._project_conv": (8, 32, 1, 1)}
    reasons = {layer.layer: layer.reason for layer in layers}
    assert reasons["blocks.0._depthwise_conv"] == "1 input channels is not a multiple of 4"
    assert reasons["fc"] == "60 of 60 groups keep more than 2 of 4"


def test_a_weight_that_is_computed_is_not_eligible(tmp_path: Path) -> None:
    shape = onnx.helper.make_tensor_value_info
    weight = np.tile(np.array([1, 0, 0, 2], np.float32), (8, 2))
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in {"w": weight, "i": np.arange(8)}.items()]
    nodes = [
        onnx.helper.make_node("Transpose", ["w"], ["t"]),
        onnx.helper.make_node("MatMul", ["x", "t"], ["y"], name="kept"),
        onnx.helper.make_node("Gather", ["w", "i"], ["g"], axis=1),
        onnx.helper.make_node("Gemm", ["y", "g"], ["z"], name="gathered", transB=1),
        onnx.helper.make_node("MatMul", ["z", "z"], ["product"]),
    ]
    io = [[shape(name, onnx.TensorProto.FLOAT, (8, 8))] for name in ("x", "product")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *io, stored)), tmp_path / "a.onnx")
    assert eligibility(tmp_path / "a.onnx") == {"kept": "", "gathered": "its weight comes from Gather"}


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\xff nothing")
    with pytest.raises(ValueError, match=r"a\.onnx: not an ONNX file"):
        eligible_24(tmp_path / "a.onnx")


def test_doctor_says_which_layers_of_an_onnx_file_are_eligible(tmp_path: Path) -> None:
    weight = np.tile(np.array([1, 0, 0, 2], np.float32), (8, 2))
    stored = [onnx.numpy_helper.from_array(weight + k, f"{name}.weight") for k, name in enumerate(("up", "down"))]
    gemms = [onnx.helper.make_node("Gemm", ["x", entry.name], [entry.name[:-7]], transB=1) for entry in stored]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (8, 8)) for name in ("x", "up", "down")]
    graph = onnx.helper.make_graph(gemms, "g", values[:1], values[1:], stored)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    rows = document(command("doctor", f"{tmp_path}/a.onnx", "--json"))["layers"]
    assert [(row["layer"], row["eligible"]) for row in rows] == [("up", True), ("down", False)]
    assert "16 of 16 groups keep more than 2 of 4" in command("doctor", f"{tmp_path}/a.onnx").stdout


class Turned(nn.Linear):
    """Its weights were stored the other way round in version 1."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version") is None:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].T
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_modules_with_a_version_are_told_that_their_weights_are_of_today(tmp_path):
    net = nn.Sequential(Turned(8, 8), nn.ReLU(), nn.Linear(8, 3))
    save_model(net, {}, tmp_path / "m.safetensors")
    again = load_weights(nn.Sequential(Turned(8, 8), nn.ReLU(), nn.Linear(8, 3)), tmp_path / "m.safetensors")
    assert torch.equal(again[0].weight, net[0].weight)
