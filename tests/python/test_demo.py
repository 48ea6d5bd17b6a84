"""The demo, shortened: its data, one whole run, a second look, an interruption, folders that are not its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpcore import demo
from mpcore.checkpoint import sha256
from mpcore.models.export import load
from mpcore.verify import verify


@pytest.fixture(scope="module", autouse=True)
def short() -> Any:
    """A few steps of everything, so that the tests see every stage and no accuracy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAINING_IMAGES", 160)
        patch.setattr(demo, "CALIBRATION_IMAGES", 64)
        patch.setattr(demo, "DENSE", dataclasses.replace(demo.DENSE, epochs=2))
        patch.setattr(demo, "RECOVERY", dataclasses.replace(demo.RECOVERY, epochs=1))
        with demo.one_thread():
            yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return demo.run(tmp_path_factory.mktemp("demo") / "run", quiet=True)


def test_held_out_digits_are_never_trained_on() -> None:
    (train, labels), (held_out, others) = demo.digits()
    assert len(train) == len(labels) == 160
    assert len(train) + len(held_out) == len(labels) + len(others) == 1797
    assert train.dtype == torch.float32
    assert (float(train.min()), float(train.max())) == (-1.0, 1.0)
    again = demo.digits()
    assert torch.equal(again[1][0], held_out)


def test_an_image_is_moved_by_at_most_a_pixel_and_half_of_them_not_at_all() -> None:
    (images, _), _ = demo.digits()
    moved = demo.shift(images, torch.Generator().manual_seed(0))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    views = [padded[..., i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    found = np.array([[np.array_equal(view[n], moved[n].numpy()) for view in views] for n in range(len(images))])
    assert found.any(axis=1).all()
    assert 0.4 < found[:, 4].mean() < 0.7


def test_the_demo_leaves_a_verified_run_and_four_rows(whole: dict[str, Any]) -> None:
    assert [row["model"] for row in whole["rows"]] == ["dense", "pruned", "distilled", "dense-continued"]
    assert all(row["n"] == 1637 and row["top1_ci"][0] <= row["top1"] <= row["top1_ci"][1] for row in whole["rows"])
    assert whole["verified"] is True
    assert verify(whole["folder"]).problems == ()
    assert Path(whole["report"]).is_file()
    assert not [entry for entry in Path(whole["folder"]).iterdir() if entry.is_dir()]


def test_the_student_loads_without_its_maker_and_is_half_zeros(whole: dict[str, Any]) -> None:
    model = load(whole["folder"])
    for block in model.blocks:
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            kept = (layer.weight.reshape(len(layer.weight), -1, 4) != 0).sum(2)
            assert int(kept.max()) == 2


def test_a_finished_demo_is_only_verified_again(whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_work", lambda *_, **__: pytest.fail("worked again"))
    assert demo.run(whole["folder"], quiet=True) == whole


@pytest.mark.parametrize("stage", ["prune", "distill", "add_to_evaluation"])
def test_an_interrupted_demo_ends_with_the_same_bits(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo.run(tmp_path / "run", quiet=True)
    rows = demo.run(tmp_path / "run", quiet=True)["rows"]
    assert rows == whole["rows"]
    for name in ("model.safetensors", "student.safetensors", "masks.safetensors"):
        assert sha256(tmp_path / "run" / name) == sha256(Path(whole["folder"]) / name)


def test_a_folder_of_something_else_is_refused_before_any_work(whole: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else .*'thesis\.txt'"):
        demo.run(tmp_path, quiet=True)
    with pytest.raises(ValueError, match="is a file"):
        demo.run(tmp_path / "thesis.txt", quiet=True)
    with pytest.raises(ValueError, match="with this seed"):
        demo.run(whole["folder"], seed=1, quiet=True)


def test_training_runs_on_one_thread_and_gives_the_others_back() -> None:
    torch.set_num_threads(2)
    with demo.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
