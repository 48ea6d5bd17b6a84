"""Where a hybrid magnitude-SER schedule stands between two cycles, in one file that is written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpcore.models.trainstate import part, seal
from mpcore.records import FORMAT, atomic

STATE = Path("progress") / "hybrid.safetensors"


class HybridState:
    """``progress/hybrid.safetensors`` in ``folder``: weights, masks, values of removed weights, cycles done.

    ``identity`` is what an earlier state must agree on. With ``folder`` None nothing is kept. ``kept`` and ``value``
    are layer name -> tensor in the weight's shape.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, identity: Mapping[str, Any]) -> None:
        self.path = None if folder is None else Path(folder) / STATE
        self.identity: dict[str, Any] = json.loads(json.dumps(dict(identity)))

    def save(
        self, model: nn.Module, kept: Mapping[str, Tensor], value: Mapping[str, Tensor], position: dict[str, Any]
    ) -> None:
        """Keep the present state; ``position`` is plain data."""
        if self.path is None:
            return
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"kept.{name}": mask for name, mask in kept.items()}
        tensors |= {f"value.{name}": tensor for name, tensor in value.items()}
        # A copy of each: safetensors refuses tensors that share memory.
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        about = {"format": FORMAT, "identity": self.identity, "position": position}
        about["seal"] = seal(about, copies)
        with atomic(self.path) as temporary:
            save_file(copies, temporary, metadata={"state": json.dumps(about)})

    def load(self, model: nn.Module, kept: Mapping[str, Tensor], value: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Put everything back in place and return the position, or None if there is no state.

        Raises:
            ValueError: if the state is of another schedule, naming what differs, or not readable.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["state"])
            tensors = load_file(self.path)
            if about.pop("seal", None) != seal(about, tensors):
                raise ValueError("it has changed since it was written; start again with resume=False")
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: not a state of a schedule ({error})") from None
        for key in sorted({*about["identity"], *self.identity}):
            if (was := about["identity"].get(key)) != (now := self.identity.get(key)):
                difference = f"{key} was {was!r}, now {now!r}"
                raise ValueError(
                    f"{self.path}: belongs to another schedule ({difference}); start again with resume=False"
                )
        model.load_state_dict(part(tensors, "model."))
        with torch.no_grad():
            for prefix, places in (("kept.", kept), ("value.", value)):
                for name, tensor in part(tensors, prefix).items():
                    places[name].copy_(tensor)
        position: dict[str, Any] = about["position"]
        return position
