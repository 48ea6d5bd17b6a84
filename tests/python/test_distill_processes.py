"""Two real processes that share a distillation: the weights of one process, the same bits after an interruption."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import images, tiny_vit
from safetensors.torch import load_file
from share_training import SHARED, recover, shared_training
from students import X, Y, pair
from torch import Tensor

import mpcore
from mpcore.models.apply import layer_of
from mpcore.models.processes import Processes
from mpcore.models.recipe import Recipe
from mpcore.models.source import load_model
from mpcore.records import EvalTable

RECIPE = Recipe(solver="none", sequence="parallel", permute_rounds=2, certify_samples=8)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done all that share_training.py does."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "network.py").write_text("from nets import tiny_vit as make\n")
    np.savez(folder / "train.npz", inputs=images(32, channels=1, size=8).numpy(), targets=np.arange(32) % 10)
    calibration = [images(16, channels=1, size=8)]
    for name, (model, source) in {
        "run": (tiny_vit(), None),
        "built": load_model(f"{folder}/network.py:make", weights=None, seed=0),
    }.items():
        mpcore.prune(model, RECIPE, calibration=calibration, out=folder / name, progress=False, source=source)
    shutil.copytree(folder / "run", folder / "alone")
    script = Path(__file__).with_name("share_training.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, script, folder], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"process{rank}" / f"{name}.safetensors")


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-6), (torch.float64, 1e-9, 1e-12)])
def test_two_processes_reach_the_weights_of_one(
    two: Path, name: str, dtype: torch.dtype, rtol: float, atol: float
) -> None:
    found = weights(two, f"{name}-{dtype}")
    for key, expected in shared_training(name, dtype).state_dict().items():
        assert torch.allclose(found[key], expected, rtol=rtol, atol=atol), key


def test_every_process_has_the_same_bits_and_holds_the_masks(two: Path) -> None:
    _, _, masks = pair()
    for path in (two / "process0").glob("*.safetensors"):
        one, other = (weights(two, path.stem, rank) for rank in (0, 1))
        assert all(torch.equal(one[key], other[key]) for key in one), path.stem
        assert all(not one[f"{name}.weight"][~mask].any() for name, mask in masks.items()), path.stem


def test_a_shared_training_resumes_to_the_same_bits(two: Path) -> None:
    whole, resumed = weights(two, "whole"), weights(two, "resumed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert [json.loads(line)["step"] for line in (two / "state" / "train.jsonl").read_text().splitlines()]


def test_a_recovered_run_is_written_once_and_verifies(two: Path) -> None:
    recover(two / "alone")
    found, expected = (mpcore.load(two / name, tiny_vit(5)) for name in ("run", "alone"))
    for (key, one), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), key
    assert mpcore.verify(two / "run").ok
    assert [row.model for row in EvalTable.read(two / "run" / "eval.json").rows] == ["dense", "pruned", "distilled"]
    mpcore.check_mask(layer_of(found, "blocks.0.mlp.fc1").weight.detach().numpy() != 0, "2:4")


def test_the_command_copies_the_run_and_speaks_once(two: Path) -> None:
    assert json.loads((two / "stdout").read_text())["folder"] == str(two / "copied")
    assert mpcore.verify(two / "copied").ok
    assert (two / "copied" / "student.safetensors").exists()
    assert not (two / "built" / "student.safetensors").exists()


def test_processes_that_do_not_start_alike_are_refused(two: Path) -> None:
    for rank in (0, 1):
        assert "student_sha256 is" in (two / f"process{rank}" / "alike").read_text()
        assert "update_batchnorm wants one process" in (two / f"process{rank}" / "batchnorm").read_text()


@pytest.mark.parametrize("samples", [0, 1, 5, 48])
@pytest.mark.parametrize("batch", [lambda n: X[:n], lambda n: (X[:n], Y[:n]), lambda n: ({"x": X[:n]}, Y[:n])])
def test_the_shares_make_the_batch(samples: int, batch: Any) -> None:
    shares = [Processes(rank, 3).share(batch(samples)) for rank in range(3)]
    inputs = [share["x"] if isinstance(share, dict) else share for share, _ in shares]
    assert torch.equal(torch.cat(inputs), X[:samples])
    assert max(map(len, inputs)) - min(map(len, inputs)) <= 1
    if isinstance(batch(samples), tuple):
        assert torch.equal(torch.cat([targets for _, targets in shares]), Y[:samples])
