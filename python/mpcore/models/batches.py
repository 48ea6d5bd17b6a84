"""What a batch is: ``inputs`` or ``(inputs, targets)``; inputs are a tensor or a dict of tensors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
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


def take(inputs: Any, order: list[int]) -> Any:
    """The samples of a batch's inputs at these places, in this order."""
    return {key: value[order] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[order]


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
    """The logits (n, classes) of ``model``; ``.logits`` or ``["logits"]`` of its output, the first entry of a tuple.

    Raises:
        TypeError: for anything else, and for a list of several: as a rule feature maps, of which the first says nothing
            of the others.
    """
    output = call(model, inputs)
    output = getattr(output, "logits", output)
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    if isinstance(output, list) and len(output) > 1:
        raise TypeError(
            f"model: its output is a list of {len(output)}, wanted a tensor of logits; wrap the model so that its "
            "forward returns the one that counts, or all of them joined to one"
        )
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        keys = f" with the keys {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
        raise TypeError(
            f"model: its output is of type {type(output).__name__}{keys}, wanted a tensor of logits; wrap the model so "
            "that its forward returns one"
        )
    return output.flatten(1) if output.ndim > 2 else output


def call(model: nn.Module, inputs: Any) -> Any:
    """Whatever ``model`` returns for a batch's inputs."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor of a model's output, through tuples, lists, dicts and dataclasses, in order.

    An object of any other kind, such as a key-value cache, is the model's own state: of it ``.logits`` alone counts.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    elif dataclasses.is_dataclass(output):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    else:
        return [output.logits] if isinstance(getattr(output, "logits", None), Tensor) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer was called with, by position or by keyword, from the arguments of a hook ``with_kwargs``.

    Raises:
        TypeError: if no tensor is among them.
    """
    given = [*args[:1], *(kwargs[key] for key in ("input", *kwargs) if key in kwargs)]
    found = next((value for value in given if isinstance(value, Tensor)), None)
    if found is None:
        raise TypeError("called without a tensor")
    return found


def check_logits(logits: Tensor, where: str, *, classes: int | None = None) -> Tensor:
    """``logits`` if they are (samples, classes), with the number of ``classes`` of the batches before if that is known.

    Raises:
        ValueError: naming the batch.
    """
    if logits.ndim != 2:
        hint = "; for one number per sample z return torch.stack([-z, z], 1)" if logits.ndim == 1 else ""
        raise ValueError(
            f"model: its output for {where} has the shape {tuple(logits.shape)}, wanted logits (samples, classes){hint}"
        )
    if classes is not None and logits.shape[1] != classes:
        raise ValueError(
            f"model: {logits.shape[1]} numbers per sample for {where} and {classes} for the batches before, wanted "
            "logits (samples, classes) with the same classes; give dense outputs batches of one image size"
        )
    return logits


def materialise(data: Iterable[Any], name: str) -> list[Any]:
    """All batches as a list, checked: at least one, each a non-empty tensor (or dict of them), all finite.

    Raises:
        TypeError: if ``data`` is not iterable or a batch is not made of tensors.
        ValueError: if there is no batch, one is empty or holds NaN or infinity, or its labels are not one integer per
            sample.
    """
    if isinstance(data, (Tensor, str, bytes)) or not hasattr(data, "__iter__"):
        raise TypeError(f"{name}: {type(data).__name__} is not an iterable of batches; wrap one batch in a list")
    batches = list(data)
    _refuse_one_batch(batches, name)
    for index, batch in enumerate(batches):
        where = f"{name}: batch {index}"
        inputs = _checked_labels(batch, where)
        tensors: Sequence[Any] = tuple(inputs.values()) if isinstance(inputs, dict) else (inputs,)
        for tensor in tensors:
            if isinstance(tensor, (tuple, list)):
                told = f"{where} is a {type(tensor).__name__} of {len(tensor)}"
                raise TypeError(f"{told}, wanted inputs or (inputs, labels) with inputs a tensor or a dict of tensors")
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{where} holds a {type(tensor).__name__}, wanted torch tensors")
            if not tensor.numel():
                raise ValueError(f"{where} is empty (shape {tuple(tensor.shape)})")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{where} holds NaN or infinity")
    if not batches:
        raise ValueError(f"{name}: no batches")
    return batches


def _refuse_one_batch(batches: list[Any], name: str) -> None:
    """``(images, labels)`` in place of ``[(images, labels)]``: a batch that is nothing but labels says so."""
    for index, batch in enumerate(batches):
        labels = isinstance(batch, Tensor) and batch.ndim == 1 and not batch.is_floating_point()
        if labels and isinstance(batches[0], Tensor) and batches[0].ndim > 1:
            raise ValueError(
                f"{name}[{index}] is an integer tensor of shape {tuple(batch.shape)}; "
                "a list of batches is wanted: [(images, labels)]"
            )


def _checked_labels(batch: Any, where: str) -> Any:
    """The inputs of a batch whose labels, if it has any, are one integer per sample or per pixel."""
    try:
        inputs, labels = split(batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{where}: a pair is read as (inputs, labels), and its labels are no tensor: {error}") from None
    if labels is None:
        return inputs
    told = f"a pair is read as (inputs, labels), and its labels are {labels.dtype} of shape {tuple(labels.shape)}"
    if not _integers(labels):
        raise ValueError(f"{where}: {told}, wanted integers")
    if _countable(inputs) and labels.shape[:1] != (size(inputs),):
        raise ValueError(f"{where}: {told}, wanted one label for each of its {size(inputs)} samples")
    return inputs


def _countable(inputs: Any) -> bool:
    """Whether :func:`size` can tell the number of samples."""
    value = next(iter(inputs.values()), None) if isinstance(inputs, dict) else inputs
    return isinstance(value, Tensor) and value.ndim > 0


def is_class_numbers(targets: Tensor) -> bool:
    """Whether they are one integer per sample."""
    return targets.ndim == 1 and _integers(targets)


def _integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def digest(batches: Iterable[Any]) -> str:
    """SHA-256 over the bytes, dtypes and shapes of all inputs and targets, in order."""
    seal = hashlib.sha256()
    for batch in batches:
        inputs, targets = split(batch)
        named = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        for name, tensor in (named if targets is None else named | {"targets": targets}).items():
            seal.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            seal.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return seal.hexdigest()
