"""Folders, tar shards and parquet give the same samples, in workers and in two ranks too; or one clear line."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shards import SAMPLES, WRITERS, label, png, write_dataset, write_folder, write_parquet, write_shards, write_tar
from share_data import load, train
from torch import Tensor

from mpcore.models.data import Batches, _rgb
from mpcore.models.parquet import ParquetFiles


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


def whole(batches: Batches) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def numbers(inputs: Tensor) -> list[int]:
    """Which samples these are, by their blue pixels."""
    return (inputs[:, 2].amax((1, 2)) * 255).round().int().tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_storage_gives_the_samples_of_the_folder(root: Path, kind: str, workers: int) -> None:
    inputs, targets = whole(load(root / kind, workers))
    expected, labels = whole(load(root / "folder", 0))
    assert torch.equal(inputs, expected)
    assert torch.equal(targets, labels)
    assert numbers(inputs) == list(range(SAMPLES))
    assert targets.tolist() == [label(n) for n in range(SAMPLES)]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_seed_and_a_limit_draw_the_same_samples_in_any_number_of_workers(root: Path, kind: str) -> None:
    drawn = [whole(load(root / kind, workers, seed=5, limit=11)) for workers in (0, 1, 2)]
    assert all(torch.equal(a, b) for other in drawn[1:] for a, b in zip(drawn[0], other, strict=True))
    reference = whole(load(root / "folder", 0, seed=5, limit=11))
    assert sorted(numbers(drawn[0][0])) == sorted(numbers(reference[0]))
    assert [label(n) for n in numbers(drawn[0][0])] == drawn[0][1].tolist()


def test_workers_leave_the_random_numbers_of_a_training_alone(root: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    list(load(root / "shards", 2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", WRITERS)
def test_batches_reach_a_worker_that_does_not_fork(root: Path, kind: str) -> None:
    batches = load(root / kind, 0)
    again = pickle.loads(pickle.dumps(batches))
    assert torch.equal(again[1][0], batches[1][0])


def test_two_processes_share_the_samples_and_reach_the_weights_of_one(root: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("share_data.py")
    done = subprocess.run([*launch, script, root], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for kind in WRITERS:
        first, second = (load_file(root / f"{kind}-{rank}.safetensors") for rank in (0, 1))
        assert sorted(numbers(first["inputs"]) + numbers(second["inputs"])) == list(range(SAMPLES))
        assert first["samples"].tolist() == second["samples"].tolist() == [5, 5, 5, 5, 3]
        for part in (first, second):
            assert [label(n) for n in numbers(part["inputs"])] == part["targets"].tolist()
        alone = train(root / kind, 0).state_dict()
        trained = [load_file(root / f"{kind}-trained-{rank}.safetensors") for rank in (0, 1)]
        for name, expected in alone.items():
            assert torch.equal(trained[0][name], trained[1][name])
            assert torch.allclose(trained[0][name], expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_parts_make_the_batches(root: Path, batch_size: int) -> None:
    batches = Batches(load(root / "parquet", 0).samples, list(range(SAMPLES)), batch_size)
    parts = [batches.part(rank, 3) for rank in range(3)]
    for index in range(len(batches)):
        shares = [part[index] for part in parts]
        assert {share.samples for share in shares} == {len(batches[index][0])}
        inputs = torch.cat([share.inputs for share in shares if len(share.inputs)])
        assert torch.equal(inputs, batches[index][0])


def test_parquet_shuffles_among_a_few_row_groups_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpcore.models.parquet._WINDOW", 2200)
    files = sorted((root / "parquet" / "data").iterdir())
    store, reads = ParquetFiles(files), []
    order = store.arrange(np.random.default_rng(0).permutation(SAMPLES), np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(SAMPLES))
    assert order.tolist() != list(range(SAMPLES))
    rows = store._rows
    monkeypatch.setattr(store, "_rows", lambda group: (group in store._kept or reads.append(group), rows(group))[1])
    assert [store.read(i) for i in order] == [png(i) for i in order.tolist()]
    assert SAMPLES > len(reads) >= len(store.groups)
    assert len(store._kept) < len(store.groups)


def test_one_file_or_a_glob_names_a_part(root: Path) -> None:
    assert len(whole(load(root / "shards" / "train-00001.tar", 0))[1]) == 8
    assert len(whole(load(root / "shards" / "train-0000[01].tar", 0))[1]) == 16
    assert len(whole(load(root / "parquet" / "data" / "train-00000-of-*.parquet", 0))[1]) == 12
    with pytest.raises(FileNotFoundError, match=r"test-\*\.tar: no such file"):
        load(root / "shards" / "test-*.tar", 0)


def test_images_without_labels_are_unlabelled(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(0), "0.txt": b"a caption", "1.png": png(1)})
    write_parquet(tmp_path / "b.parquet", {"picture": [png(0), png(1)], "caption": ["a", "b"]})
    for file in ("a.tar", "b.parquet"):
        (batch,) = load(tmp_path / file, 0)
        assert numbers(batch) == [0, 1]


def test_several_splits_or_kinds_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    first = tmp_path / "data" / "train-00000-of-00002.parquet"
    (tmp_path / "data" / "validation-00000-of-00001.parquet").write_bytes(first.read_bytes())
    with pytest.raises(
        ValueError, match=r"2 sets of files \(train, validation\); name one by a glob: .*validation\*\.pa"
    ):
        load(tmp_path, 0)
    write_tar(tmp_path / "0.tar", {"0.png": png(0)})
    with pytest.raises(ValueError, match=r"holds 0\.tar and .*\.parquet; name the files of one kind"):
        load(tmp_path, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_with_its_file_and_sample(tmp_path: Path, workers: int) -> None:
    write_tar(tmp_path / "a.tar", {"x/0.png": png(0), "x/1.png": b"no image"})
    with pytest.raises(
        ValueError, match=r"^\S*a\.tar: sample 'x/1': not a readable image \(of no format Pillow knows\)$"
    ):
        list(load(tmp_path / "a.tar", workers))
    write_parquet(tmp_path / "b.parquet", {"image": [png(0)] * 5 + [png(1)[:60]]})
    with pytest.raises(ValueError, match=r"^\S*b\.parquet: row 5: not a readable image \(.*\)$"):
        list(load(tmp_path / "b.parquet", workers))
    write_folder(tmp_path / "c")
    (tmp_path / "c" / "class1" / "0010.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^\S*class1/0010\.png: not a readable image"):
        list(load(tmp_path / "c", workers))


def test_images_of_any_depth_and_colour_are_read_as_8_bits_of_rgb(tmp_path: Path) -> None:
    grey = np.arange(0, 256, 2, dtype=np.uint8).reshape(8, 16)
    written = {
        "8 bits": Image.fromarray(grey),
        "16 bits": Image.fromarray(grey.astype(np.uint16) * 257),
        "rgba": Image.fromarray(np.dstack([grey] * 4)),
        "grey and alpha": Image.fromarray(np.dstack([grey] * 2)),
        "palette": Image.fromarray(grey).convert("P"),
    }
    expected = np.dstack([grey] * 3)
    for name, image in written.items():
        image.save(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as again:
            assert np.array_equal(np.asarray(_rgb(again)), expected), name
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    with Image.open(tmp_path / "cmyk.jpg") as again:
        assert again.mode == "CMYK"
        assert np.abs(np.asarray(_rgb(again)).astype(int) - expected).max() <= 4
    (tmp_path / "wide").mkdir()
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "wide" / "0.tif")
    with pytest.raises(ValueError, match=r"0\.tif: not a readable image \(its pixels are 32 bits of no known range"):
        list(load(tmp_path / "wide", 0))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": png(0), "0.cls": b"1", "1.png": png(1)}, r"sample '1': no label \(\.cls\); other samples have one"),
        ({"0.png": png(0), "0.cls": b"cat"}, r"sample '0': its label 'cat' \(\.cls\) is not a class number from 0"),
        ({"0.png": png(0), "0.cls": b"-1"}, "its label '-1'"),
        ({"0.cls": b"1"}, r"sample '0' has 0 images \(it holds cls\), wanted 1"),
        ({"0.png": png(0), "0.seg.png": png(0)}, r"sample '0' has 2 images \(it holds png, seg\.png\), wanted 1"),
        ({}, "holds no images, nor do the 0 others"),
    ],
)
def test_shards_that_make_no_sense_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_tar(tmp_path / "a.tar", members), 0)


def test_files_that_are_cut_short_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_dataset(tmp_path)
    shard, table = tmp_path / "train-00001.tar", tmp_path / "data" / "train-00000-of-00002.parquet"
    for path in (shard, table):
        content = path.read_bytes()
        end = -(-len(content.rstrip(b"\0")) // 512) * 512 if path is shard else len(content) - 1
        for length in (1500, 1536, 3000, end - 512, end):
            path.write_bytes(content[:length])
            with pytest.raises(ValueError, match=rf"{path.name}: not a whole,? .* file"):
                load(path, 0)


IMAGES = [{"bytes": png(0), "path": None}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": IMAGES, "fine_label": [1]}, "no column 'label'; its columns are img, fine_label"),
        ({"image": IMAGES, "label": ["cat"]}, "column 'label' holds string, wanted integers"),
        ({"image": IMAGES, "label": pa.array([None], pa.int64())}, "row 0: no label"),
        ({"image": IMAGES, "label": [-1]}, "row 0: label -1 is not a class number from 0"),
        ({"image": IMAGES, "mask": IMAGES, "label": [1]}, "has 2 columns of images, wanted 1"),
        ({"text": ["a"]}, r"has no column of images \(struct<bytes, path> or binary\), wanted 1; its columns are text"),
        ({"image": pa.array([], pa.binary())}, "holds no rows, nor do the 0 others"),
    ],
)
def test_parquet_that_makes_no_sense_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_parquet(tmp_path / "a.parquet", columns), 0)


def test_a_row_without_bytes_is_named(tmp_path: Path) -> None:
    rows = [*IMAGES, {"bytes": None, "path": "elsewhere.png"}]
    with pytest.raises(ValueError, match=r"a\.parquet: row 1: no bytes in column 'image'"):
        list(load(write_parquet(tmp_path / "a.parquet", {"image": rows}), 0))


def test_parquet_files_that_disagree_about_labels_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a-0.parquet", {"image": IMAGES, "label": [1]})
    write_parquet(tmp_path / "a-1.parquet", {"image": IMAGES})
    with pytest.raises(ValueError, match="some of the 2 files have labels, others have none"):
        load(tmp_path, 0)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": IMAGES})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"a\.parquet: parquet needs pyarrow; install mpcore\[data\]"):
        load(file, 0)


def test_a_member_that_is_no_array_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("inputs.npy", "garbage")
    with pytest.raises(ValueError, match=r"x\.npz: its 'inputs' is not an array"):
        load(tmp_path / "x.npz", 0)
