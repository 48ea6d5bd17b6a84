"""``mpcore prune`` and ``inspect`` of a checkpoint, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from test_cli import complaint, document, run

from mpcore.checkpoint import save_tensors


def checkpoint(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {f"{name}.weight": rng.standard_normal((16, 32)).astype("f4") for name in ("up", "down", "lm_head")}
    save_tensors(folder / "model.safetensors", tensors)
    return folder / "model.safetensors"


def test_a_checkpoint_is_pruned_and_verifies(tmp_path: Path) -> None:
    found = document(run("prune", checkpoint(tmp_path), "--out", tmp_path / "run", "--pattern", "1:4", "--json"))
    assert [layer["name"] for layer in found["layers"]] == ["down", "up"]
    assert found["dense"] == {"lm_head": "classifier head"}
    assert document(run("verify", tmp_path / "run", "--json"))["ok"]


def test_options_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path), tmp_path / "run"
    assert "--calibration goes with a model" in complaint(run("prune", source, "--out", out, "-c", "photos"))
    assert "--recipe goes with a model" in complaint(run("prune", source, "--out", out, "-r", "default"))
    assert "--skip goes with a checkpoint" in complaint(run("prune", "timm:x", "--out", out, "--skip", "*"))
    assert "--calibration is missing" in complaint(run("prune", "timm:x", "--out", out))
    assert "--layers goes with a checkpoint" in complaint(run("inspect", "timm:x", "--layers", "*"))
    assert not out.exists()


def test_inspect_takes_the_layers_asked_for(tmp_path: Path) -> None:
    found = document(
        run("inspect", checkpoint(tmp_path), "--layers", "u*", "--layers", "down.weight", "--json", "--quiet")
    )
    assert sorted(layer["name"] for layer in found["layers"]) == ["down.weight", "up.weight"]
    assert "matches 'x'" in complaint(run("inspect", tmp_path / "model.safetensors", "--layers", "u*", "--layers", "x"))


def test_a_name_that_is_neither_a_checkpoint_nor_a_model_to_build_says_how_to_name_one(tmp_path: Path) -> None:
    for command in (("prune", "resnet18", "-c", "photos", "--out", tmp_path / "run"), ("inspect", "resnet18")):
        line = complaint(run(*command))
        assert line.startswith("mpcore: resnet18: no such file or folder; a model to build is timm:NAME")
