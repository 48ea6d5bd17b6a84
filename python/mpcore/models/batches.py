"""What a batch is: ``inputs`` or ``(inputs, targets)``; inputs are a tensor or a dict of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """What one of several processes works on of a batch of ``samples``; its own inputs may be none of them."""

    inputs: Any
    targets: Tensor | None
    samples: int


def share_of(samples: int, rank: int, count: int) -> slice:
    """The consecutive samples of process ``rank`` of ``count``: from n rank / count to n (rank + 1) / count."""
    return slice(samples * rank // count, samples * (rank + 1) // count)


def count_samples(batch: Any) -> int:
    """Number of samples of a batch, over all processes."""
    return batch.samples if isinstance(batch, Part) else size(split(batch)[0])


def split(batch: Any) -> tuple[Any, Tensor | None]:
    """``(inputs, targets)`` of a batch; targets is None for unlabelled data."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], torch.as_tensor(batch[1])
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return batch[0], None
    return batch, None


def first(inputs: Any, count: int) -> Any:
    """The first ``count`` samples of a batch's inputs."""
    return {key: value[:count] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[:count]


def size(inputs: Any) -> int:
    """Number of samples of a batch's inputs."""
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def place(inputs: Any, like: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """Inputs on the device of ``like``; floating-point tensors as ``dtype`` if one is given."""
    device = next((parameter.device for parameter in like.parameters()), torch.device("cpu"))
    if isinstance(inputs, dict):
        return {key: place(value, like, dtype) for key, value in inputs.items()}
    inputs = inputs.to(device)
    return inputs.to(dtype) if dtype is not None and inputs.is_floating_point() else inputs


def forward(model: nn.Module, inputs: Any) -> Tensor:
    """The logits (n, classes) of ``model``; ``.logits`` of a Hugging Face output, the first entry of a tuple."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"model: its output is a {type(output).__name__}, wanted a tensor of logits")
    return output.flatten(1) if output.ndim > 2 else output


def materialise(data: Iterable[Any], name: str) -> list[Any]:
    """All batches as a list, checked: at least one, each a non-empty tensor (or dict of them), all finite.

    Raises:
        TypeError: if ``data`` is not iterable or a batch is not made of tensors.
        ValueError: if there is no batch, or one is empty or holds NaN or infinity.
    """
    if isinstance(data, (Tensor, str, bytes)) or not hasattr(data, "__iter__"):
        raise TypeError(f"{name}: {type(data).__name__} is not an iterable of batches; wrap one batch in a list")
    batches = list(data)
    for index, batch in enumerate(batches):
        inputs, _ = split(batch)
        tensors: Sequence[Any] = tuple(inputs.values()) if isinstance(inputs, dict) else (inputs,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: batch {index} holds a {type(tensor).__name__}, wanted torch tensors")
            if not tensor.numel():
                raise ValueError(f"{name}: batch {index} is empty (shape {tuple(tensor.shape)})")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name}: batch {index} holds NaN or infinity")
    if not batches:
        raise ValueError(f"{name}: no batches")
    return batches


def digest(batches: Sequence[Any]) -> str:
    """SHA-256 over the bytes, dtypes and shapes of all inputs, in order."""
    seal = hashlib.sha256()
    for batch in batches:
        inputs, _ = split(batch)
        for tensor in inputs.values() if isinstance(inputs, dict) else (inputs,):
            seal.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            seal.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return seal.hexdigest()
