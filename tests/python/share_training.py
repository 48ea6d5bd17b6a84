"""What each process of test_distill_processes.py does; started by torchrun with a folder as its argument."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from nets import tiny_vit
from safetensors.torch import save_file
from students import PowerCut, X, Y, batches, exact_pair, pair
from torch import nn

import mpcore
import mpcore.cli
from mpcore.models.distill import DistillSettings, train_student
from mpcore.models.processes import Processes

EDGES = [0, 7, 14, 22, 29, 36, 47, 48]
"""Batches that two processes cannot halve, and one with a single sample."""

SHARED: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-3, "accumulate": 3, "ema": 0.5, "features": 1.0},
    "sgd": {"optimizer": "sgd", "lr": 0.05},
}
DROPPING = DistillSettings(epochs=2, dropout=True, lr=3e-3, save_every=1, accumulate=2, ema=0.5)


def shared_training(name: str, dtype: torch.dtype) -> nn.Module:
    """One of ``SHARED``, in however many processes run it."""
    student, teacher, masks = exact_pair()
    data = [(X[a:b].to(dtype), Y[a:b]) for a, b in pairwise(EDGES)]
    settings = DistillSettings(epochs=3, **SHARED[name])
    train_student(student.to(dtype), teacher.to(dtype), masks, data, settings=settings)
    return student


def recover(folder: Path) -> None:
    """Distil the run in ``folder``; by SGD, for AdamW makes whole steps of gradients that are rounding alone."""
    data = [(X[a:b, :1, :8, :8].contiguous(), Y[a:b]) for a, b in pairwise(EDGES)]
    settings = {"optimizer": "sgd", "lr": 0.05, "ema": 0.5}
    mpcore.distill(folder, data, model=tiny_vit(5), epochs=2, evaluation=data, progress=False, **settings)


def _resumed(folder: Path) -> tuple[nn.Module, nn.Module]:
    """A training with dropout and a shuffling loader, whole and interrupted."""
    whole, teacher, masks = pair()
    train_student(whole, teacher, masks, batches("loader"), settings=DROPPING)
    cut, _, _ = pair()
    try:
        train_student(cut, teacher, masks, PowerCut(batches("loader"), 9), settings=DROPPING, folder=folder)
        raise AssertionError("nothing cut the training short")
    except KeyboardInterrupt:
        pass
    again, _, _ = pair()
    train_student(again, teacher, masks, batches("loader"), settings=DROPPING, folder=folder)
    return whole, again


def _from_the_command_line(folder: Path) -> None:
    """``mpcore distill`` of a run that says how to build its network."""
    arguments = [
        "distill",
        folder / "built",
        "--train",
        folder / "train.npz",
        "--out",
        folder / "copied",
        "--lr",
        "1e-3",
    ]
    sys.argv = ["mpcore", *map(str, arguments), "--epochs", "1", "--json"]
    try:
        mpcore.cli.main()
    except SystemExit as done:
        if done.code:
            raise


def _refused(seed: int, **settings: Any) -> str:
    student, teacher, masks = pair(seed)
    try:
        train_student(student, teacher, masks, batches("list"), settings=DistillSettings(**settings))
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    """All of it in one start of the interpreter; each process writes its results into a folder of its own."""
    torch.set_num_threads(1)
    me = Processes.find()
    own = folder / f"process{me.rank}"
    own.mkdir()
    models = {
        f"{name}-{dtype}": shared_training(name, dtype) for name in SHARED for dtype in (torch.float32, torch.float64)
    }
    models["whole"], models["resumed"] = _resumed(folder / "state")
    recover(folder / "run")
    assert (folder / "run" / "student.safetensors").exists()
    _from_the_command_line(folder)
    for name, model in models.items():
        save_file(model.state_dict(), own / f"{name}.safetensors")
    (own / "alike").write_text(_refused(me.rank))
    (own / "batchnorm").write_text(_refused(0, update_batchnorm=True))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
