"""What each process of test_data.py does; started by torchrun with a folder as its argument."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from students import exact_pair
from torch import nn

from mpcore.models.batches import Part, count_samples
from mpcore.models.data import Batches, load_data
from mpcore.models.distill import DistillSettings, train_student
from mpcore.models.processes import Processes


def load(folder: Path, workers: int, **options: Any) -> Batches:
    """Images of 16 x 16 in batches of 5, the last one of 3."""
    model = nn.Identity()
    model.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3}  # type: ignore[assignment]
    return load_data(folder, model, batch_size=5, workers=workers, **options)


def train(folder: Path, workers: int) -> nn.Module:
    """A small student in however many processes run it."""
    student, teacher, masks = exact_pair()
    settings = DistillSettings(epochs=2, optimizer="sgd", lr=0.05, accumulate=2)
    train_student(student.float(), teacher.float(), masks, load(folder, workers, seed=1), settings=settings)
    return student


def main(root: Path) -> None:
    torch.set_num_threads(1)
    me = Processes.find()
    for name in ("folder", "shards", "parquet"):
        parts = list(me.part(load(root / name, 2, seed=7)))
        assert all(isinstance(part, Part) for part in parts)
        own = {
            "inputs": torch.cat([part.inputs for part in parts if len(part.inputs)]),
            "targets": torch.cat([part.targets for part in parts if part.targets is not None]),
            "samples": torch.tensor([count_samples(part) for part in parts]),
        }
        save_file(own, root / f"{name}-{me.rank}.safetensors")
        save_file(train(root / name, 2).state_dict(), root / f"{name}-trained-{me.rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
