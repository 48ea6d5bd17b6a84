"""Where a long piece of work stands, in one safetensors file that is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpcore.records import FORMAT, atomic

AGAIN = "start again with resume=False (--no-resume)"


def write_state(path: Path, identity: Mapping[str, Any], position: Any, tensors: Mapping[str, Tensor]) -> None:
    """Keep ``tensors`` with ``position`` and ``identity`` (both JSON) at ``path``, sealed with their SHA-256."""
    # A copy of each: safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    about = {"format": FORMAT, "identity": dict(identity), "position": position}
    about["seal"] = _seal(about, copies)
    with atomic(path) as temporary:
        save_file(copies, temporary, metadata={"state": json.dumps(about)})


def read_state(path: Path, work: str, identity: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]] | None:
    """The position and the tensors that :func:`write_state` kept, or None if there is no file.

    Raises:
        ValueError: if the file is not a state of ``work`` ("training"), has changed since, or is of another identity,
            naming what differs.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["state"])
        tensors = load_file(path)
        if about.pop("seal", None) != _seal(about, tensors):
            raise ValueError(f"it has changed since it was written; {AGAIN}")
        found: dict[str, Any] = about["identity"]
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a state of a {work} ({error})") from None
    wanted = json.loads(json.dumps(dict(identity)))
    for key in sorted({*found, *wanted}):
        if (was := found.get(key)) != (now := wanted.get(key)):
            raise ValueError(f"{path}: belongs to another {work} ({key} was {was!r}, now {now!r}); {AGAIN}")
    return about["position"], tensors


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _seal(about: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything in a state, so that a damaged one is not taken up."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
