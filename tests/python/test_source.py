"""Models and data by name: what is meant is built, what cannot be is one clear line."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import models as classifiers

from mpcore.checkpoint import save_tensors
from mpcore.models.data import input_size, load_data
from mpcore.models.source import build_model, load_model, parse_model

TINY = "timm:test_vit,num_classes=3,img_size=32"
NETWORK = """
from torch import nn

def small():
    return nn.Sequential(nn.Linear(4, 3))

def number():
    return 3

constant = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return path


def test_a_timm_model_is_built_with_its_arguments_and_from_its_source_again() -> None:
    model, source = load_model(TINY, weights="random", seed=3)
    assert source == {"timm": "test_vit", "kwargs": {"num_classes": 3, "img_size": 32}}
    assert not model.training
    assert {k: v.shape for k, v in build_model(source).state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again, other = (load_model(TINY, weights="random", seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_function_in_a_file_builds_the_model_and_a_checkpoint_fills_it(tmp_path: Path, file: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", {"0.weight": np.ones((3, 4), np.float16), "0.bias": np.zeros(3)})
    model, source = load_model(f"{file}:small", weights=tmp_path / "w.safetensors")
    assert source == {"file": str(file), "function": "small"}
    assert torch.equal(model.state_dict()["0.weight"], torch.ones(3, 4))
    assert isinstance(build_model(source), nn.Sequential)


def test_a_function_in_a_module_builds_the_model(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    assert load_model("network:small")[1] == {"module": "network", "function": "small"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"wanted timm:NAME, torchvision:NAME, hf:FOLDER, path/to/file\.py:function or package\.module:f"),
        ("package:not-a-name", "wanted timm:NAME"),
        ("timm:no_such_model_here", "timm has no model 'no_such_model_here'"),
        ("timm:test_vi", "did you mean"),
        ("timm:test_vit,num_classes", "'num_classes' is not key=value"),
        ("torchvision:resnet81", "torchvision has no classifier 'resnet81'; did you mean resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "only its classifiers can be named, others by a function"),
        ("torchvision:resnet18,num_classes", "'num_classes' is not key=value"),
        ("torchvision:resnet18,foo=3", "torchvision's resnet18 cannot be built so: TypeError: .*'foo'"),
        ("torchvision:vit_b_32,image_size=60", "AssertionError: Input shape indivisible by patch size"),
        ("timm:vit_tiny_patch16_224,num_heads=5", "timm's vit_tiny_patch16_224 cannot be built so: AssertionError"),
        ("no_such_package.nets:make", "there is no module 'no_such_package.nets'"),
        ("json:no_such_function", "has no function 'no_such_function'"),
        ("json:__name__", "has no function '__name__'"),
        ("platform:machine", r"machine\(\) returned a str, wanted an nn\.Module"),
    ],
)
def test_a_name_that_means_nothing_is_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(spec, weights="random")


def test_a_torchvision_model_takes_pictures_as_its_weights_were_trained() -> None:
    model, source = load_model("torchvision:vit_b_32,num_classes=3,image_size=64", weights="random")
    size = {"num_classes": 3, "image_size": 64}
    assert source == {"torchvision": "vit_b_32", "kwargs": size}
    assert input_size(model) == (3, 64, 64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    mnasnet = load_model("torchvision:mnasnet0_75", weights="random")[0]
    config = timm.data.resolve_data_config(pretrained_cfg=mnasnet.pretrained_cfg, model=mnasnet)
    assert (config["input_size"], config["interpolation"]) == ((3, 224, 224), "bilinear")
    assert config["crop_pct"] == 224 / 232


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_torchvision_model_is_built_again_as_the_one_with_pretrained_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(enum: object, **_: object) -> dict[str, torch.Tensor]:
        return classifiers.get_model(name, init_weights=False).state_dict()

    monkeypatch.setattr(type(classifiers.get_model_weights(name).DEFAULT), "get_state_dict", stand_in)
    model, source = load_model(f"torchvision:{name}")
    again = build_model(source)
    assert model.state_dict().keys() == again.state_dict().keys()
    assert model.transform_input is again.transform_input is True


def test_torchvision_weights_that_cannot_be_fetched_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(enum: object, **_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(type(classifiers.get_model_weights("alexnet").DEFAULT), "get_state_dict", unreachable)
    with pytest.raises(ValueError, match=r"torchvision's alexnet could not be fetched .*no route to host.*'random'"):
        load_model("torchvision:alexnet")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nets\.py: no such file"):
        load_model(f"{tmp_path}/nets.py:small")


def test_a_function_that_returns_no_model_is_named(file: Path) -> None:
    with pytest.raises(ValueError, match=r"number\(\) returned a int"):
        load_model(f"{file}:number")


def test_a_mistake_in_the_code_of_a_model_is_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("from torch import nn\n\ndef make():\n    return nn.Lineer(4, 3)\n")
    with pytest.raises(ValueError, match=r"wrong\.py:make: AttributeError: .* 'Lineer'.* \(.*wrong\.py, line 4\)$"):
        load_model(f"{path}:make")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^wrong:make: AttributeError"):
        load_model("wrong:make")
    (tmp_path / "unfinished.py").write_text("def make(:\n")
    for spec in (f"{tmp_path}/unfinished.py:make", "unfinished:make"):
        with pytest.raises(ValueError, match=r"unfinished(\.py)?: SyntaxError: .*\(unfinished\.py, line 1\)$"):
            load_model(spec)
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_model(f"{tmp_path}/needy.py:make")


def test_a_manifest_without_a_source_asks_for_the_model() -> None:
    with pytest.raises(ValueError, match="pass the model itself"):
        build_model({})
    assert parse_model("a.b:c") == {"module": "a.b", "function": "c"}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.weight": np.ones((3, 4))}, "lacks '0.bias' and 0 more"),
        ({"0.weight": np.ones((3, 4)), "0.bias": np.ones(3), "x": np.ones(1)}, "does not know, 'x' and 0 more"),
        ({"0.weight": np.ones((3, 5)), "0.bias": np.ones(3)}, r"'0.weight' is \(3, 5\), .* wants \(3, 4\)"),
    ],
)
def test_weights_that_do_not_fit_say_which(tmp_path: Path, file: Path, tensors: dict, message: str) -> None:
    save_tensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(ValueError, match=message):
        load_model(f"{file}:small", weights=tmp_path / "w.safetensors")


@pytest.fixture
def model() -> nn.Module:
    return load_model(TINY, weights="random")[0]


def _images(folder: Path, shades: list[int]) -> None:
    folder.mkdir(parents=True)
    for index, shade in enumerate(shades):
        Image.new("RGB", (40, 48), (shade, shade, shade)).save(folder / f"{index}.png")


def test_class_folders_give_labelled_batches_in_the_models_own_size(tmp_path: Path, model: nn.Module) -> None:
    _images(tmp_path / "b", [200, 210])
    _images(tmp_path / "a", [10, 20, 30])
    data = load_data(tmp_path, model, batch_size=2)
    inputs, targets = zip(*data, strict=True)
    assert torch.cat(targets).tolist() == [0, 0, 0, 1, 1]
    assert [tuple(batch.shape) for batch in inputs] == [(n, *input_size(model)) for n in (2, 2, 1)]
    brightness = torch.cat(inputs).mean(dim=(1, 2, 3))
    assert bool((brightness[:-1] < brightness[1:]).all())


def test_images_come_in_the_size_a_model_was_built_for(tmp_path: Path, model: nn.Module) -> None:
    _images(tmp_path / "flat", [10])
    (batch,) = load_data(tmp_path / "flat", model)
    assert tuple(batch.shape) == (1, *input_size(model)) == (1, 3, 32, 32)
    assert model(batch).shape == (1, 3)


def test_a_flat_folder_gives_unlabelled_batches(tmp_path: Path, model: nn.Module) -> None:
    _images(tmp_path / "flat", [10, 20])
    (batch,) = load_data(tmp_path / "flat", model)
    assert isinstance(batch, torch.Tensor)
    assert len(batch) == 2


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_file_of_arrays_gives_its_samples_shuffled_and_limited_by_seed(
    tmp_path: Path, model: nn.Module, suffix: str
) -> None:
    arrays = {"inputs": np.arange(20.0).reshape(10, 2), "targets": np.arange(10)}
    path = tmp_path / f"data.{suffix}"
    save_tensors(path, arrays) if suffix == "safetensors" else np.savez(path, **arrays)
    whole = load_data(path, model, batch_size=4)
    assert [len(batch[0]) for batch in whole] == [4, 4, 2]
    assert torch.cat([batch[1] for batch in whole]).tolist() == list(range(10))
    drawn = load_data(path, model, batch_size=4, seed=1, limit=6)
    labels = torch.cat([batch[1] for batch in drawn])
    assert len(set(labels.tolist())) == 6
    assert torch.equal(labels, torch.cat([batch[1] for batch in load_data(path, model, batch_size=6, seed=1, limit=6)]))
    assert all(batch[0].dtype == torch.float32 and torch.equal(batch[0][:, 0], 2.0 * batch[1]) for batch in drawn)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.ones((2, 2))}, "holds no 'inputs'"),
        ({"inputs": np.ones(3)}, r"'inputs' of shape \(3,\) holds no samples"),
        ({"inputs": np.ones((0, 3))}, "holds no samples"),
        ({"inputs": np.ones((3, 2)), "targets": np.ones(2, int)}, r"wanted integers \(3,\)"),
        ({"inputs": np.ones((3, 2)), "targets": np.ones(3)}, r"wanted integers \(3,\)"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path: Path, model: nn.Module, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / "data.npz", model)


def test_data_that_is_not_there_or_cannot_be_read_is_named(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_data(tmp_path / "nothing", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        load_data(tmp_path / "empty", model)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(b"\x89PNG no image")
    with pytest.raises(ValueError, match=r"0\.png: not a readable image"):
        list(load_data(tmp_path / "broken", model))
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"data\.npz: not a readable \.npz file"):
        load_data(tmp_path / "data.npz", model)
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(ValueError, match="wanted a folder of images"):
        load_data(tmp_path / "data.csv", model)


def test_an_npz_that_needs_unpickling_is_refused(tmp_path: Path, model: nn.Module) -> None:
    np.savez(tmp_path / "data.npz", inputs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"not a readable \.npz file"):
        load_data(tmp_path / "data.npz", model)
