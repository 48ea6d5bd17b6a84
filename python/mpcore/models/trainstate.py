"""Everything a training needs to go on as if it had not stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.apply import load_own
from mpcore.models.processes import Processes
from mpcore.models.randomness import capture, restore
from mpcore.models.statefile import part, read_state, write_state
from mpcore.records import atomic

STATE, LOG = Path("progress") / "train.safetensors", "train.jsonl"


class TrainState:
    """``progress/train.safetensors`` in ``folder``: weights, average, optimizer moments, random generators, position.

    ``average`` is kept and filled by name; ``identity`` is what an earlier state must agree on. With ``folder`` None
    nothing is kept. Every process calls every method; the main one writes, all read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Mapping[str, Tensor],
        identity: dict[str, Any],
        processes: Processes,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.model, self.optimizer, self.average, self.identity = model, optimizer, average, identity
        self.processes = processes
        self.device = next(model.parameters()).device
        self._generators: tuple[dict[str, Tensor], str] | None = None

    def save(self, position: dict[str, Any]) -> None:
        """Keep the present state, and the log that goes with it as train.jsonl."""
        if self.folder is None:
            return
        generators = self.processes.gather(capture(self.device))
        if not self.processes.main:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for rank, (numbers, _) in enumerate(generators):
            tensors |= {f"generator.{rank}.{name}": tensor for name, tensor in numbers.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entry.items()}
        words = [words for _, words in generators]
        write_state(self.folder / STATE, self.identity, {**position, "generators": words}, tensors)
        with atomic(self.folder / LOG) as temporary:
            lines = (json.dumps(entry) + "\n" for entry in position["entries"])
            temporary.write_text("".join(lines), encoding="utf-8")

    def load(self) -> dict[str, Any] | None:
        """Put weights and moments back and return the position, or None if there is no state.

        Raises:
            ValueError: if the state is of another training, naming what differs, or not readable.
        """
        found = None if self.folder is None else read_state(self.folder / STATE, "training", self.identity)
        if found is None:
            return None
        position, tensors = found
        load_own(self.model, part(tensors, "model."))
        for name, tensor in part(tensors, "average.").items():
            self.average[name].copy_(tensor)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        rank = self.processes.rank
        self._generators = part(tensors, f"generator.{rank}."), position.pop("generators")[rank]
        return dict(position)

    def restore_generators(self) -> None:
        """Put the random generators back to where the loaded state was saved."""
        if self._generators is not None:
            restore(*self._generators, self.device)
