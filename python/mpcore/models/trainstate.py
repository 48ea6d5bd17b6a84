"""Everything a training needs to go on as if it had not stopped, in one file that is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpcore.models.processes import Processes
from mpcore.models.randomness import capture, restore
from mpcore.records import FORMAT, atomic

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
        about = {"format": FORMAT, "identity": self.identity, "position": position, "generators": words}
        with atomic(self.folder / STATE) as temporary:
            # A copy of each: safetensors refuses tensors that share memory.
            copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            about["seal"] = seal(about, copies)
            save_file(copies, temporary, metadata={"state": json.dumps(about)})
        with atomic(self.folder / LOG) as temporary:
            lines = (json.dumps(entry) + "\n" for entry in position["entries"])
            temporary.write_text("".join(lines), encoding="utf-8")

    def load(self) -> dict[str, Any] | None:
        """Put weights and moments back and return the position, or None if there is no state.

        Raises:
            ValueError: if the state is of another training, naming what differs, or not readable.
        """
        path = None if self.folder is None else self.folder / STATE
        if path is None or not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["state"])
            tensors = load_file(path)
            if about.pop("seal", None) != seal(about, tensors):
                raise ValueError("it has changed since it was written; start again with resume=False (--no-resume)")
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a state of a training ({error})") from None
        self._check(path, about["identity"])
        self.model.load_state_dict(part(tensors, "model."))
        for name, tensor in part(tensors, "average.").items():
            self.average[name].copy_(tensor)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        rank = self.processes.rank
        self._generators = part(tensors, f"generator.{rank}."), about["generators"][rank]
        position: dict[str, Any] = about["position"]
        return position

    def restore_generators(self) -> None:
        """Put the random generators back to where the loaded state was saved."""
        if self._generators is not None:
            restore(*self._generators, self.device)

    def _check(self, path: Path, found: dict[str, Any]) -> None:
        for key in sorted({*found, *self.identity}):
            if found.get(key) != self.identity.get(key):
                difference = f"{key} was {found.get(key)!r}, now {self.identity.get(key)!r}"
                again = "start again with resume=False (--no-resume), which discards the student"
                raise ValueError(f"{path}: belongs to another training ({difference}); {again}")


def seal(about: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything in a state, so that a damaged one is not taken up."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
