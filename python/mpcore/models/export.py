"""Weights of a run out and in: safetensors with exact zeros, and back into a model of the same architecture."""

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

from mpcore.folder import trusted
from mpcore.models import plans, tome
from mpcore.models.apply import layer_of, load_own
from mpcore.models.source import build_model
from mpcore.records import Manifest, MaskPlan, atomic

PLAN = "plan.json"
FILES = {"student": "student.safetensors", "model": "model.safetensors", "dense": "dense.safetensors"}
SHARED = "shared"
"""Metadata key: a JSON object, alias -> the name a tensor is stored under."""
_NO_MATTER = ("training", "name_or_path")
"""Attributes of modules that say nothing of what they compute."""


def save_model(model: nn.Module, masks: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the state dict of ``model``; every weight a mask prunes is stored as exactly +0.0.

    Parameters that are one tensor under several names are stored once and named in the file's metadata.

    Args:
        model: on any device.
        masks: layer name -> bool tensor or array in the weight's shape, true = kept.
        path: the .safetensors file; written whole or not at all.

    Raises:
        ValueError: if a mask's layer has no weight, if a pruned weight is not zero, if a pruned layer shares its weight
            with another, or if the state dict holds something that is not a tensor.
    """
    tensors, aliases = collect(model, masks)
    metadata = {"format": "pt"} | ({SHARED: json.dumps(aliases)} if aliases else {})
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load(folder: str | os.PathLike[str], model: nn.Module | None = None, *, which: str | None = None) -> nn.Module:
    """A network of a finished run, in evaluation mode, with the weights and the channel order of the run.

    Args:
        folder: the run folder.
        model: a module of the same architecture, which receives the weights; None builds it as the manifest says.
        which: ``"student"``, ``"model"`` (pruned) or ``"dense"``; None takes the student where there is one, else the
            pruned model.

    Raises:
        FileNotFoundError: if the folder holds no finished run, or not the network asked for.
        ValueError: if a file has changed since the run was sealed, if the weights do not fit the model, naming the
            first that does not, or if the manifest does not say how to build it.
    """
    root = Path(folder)
    if not (root / "manifest.json").is_file():
        raise FileNotFoundError(f"{root}: no finished run (manifest.json is missing)")
    manifest = Manifest.read(root / "manifest.json")
    if which is None:
        which = "student" if FILES["student"] in manifest.files else "model"
    if which not in FILES:
        raise ValueError(f"which = {which!r} is not one of {', '.join(FILES)}")
    file = trusted(root, FILES[which], manifest)
    if model is None:
        if not manifest.source:
            raise ValueError(f"{root}: the manifest does not say how to build the model; pass model=")
        model = build_model(manifest.source)
    tome.remove(model)
    plans.ungather(model)
    load_weights(model, file).eval()
    groups = MaskPlan.read(trusted(root, PLAN, manifest)).groups if PLAN in manifest.files else ()
    for group in groups:
        for name in group.consumers if group.gathered else ():
            plans.gather(layer_of(model, name), torch.tensor(group.order))
    if which != "dense" and (merged := manifest.recipe.get("tome", 0)):
        tome.apply(model, merged)
    return model


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Give ``model`` the weights :func:`save_model` stored; names, shapes and dtypes must be the model's.

    Raises:
        ValueError: naming the file and the first tensor that is missing, unknown, or of another shape or dtype.
    """
    tensors, metadata = read(path)
    return fill(model, tensors, metadata, path)


def collect(model: nn.Module, masks: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is stored of a model: CPU copies with exact zeros, and alias -> stored name of shared tensors."""
    state = _state(model)
    layers = {weight_name(layer): layer for layer in masks}
    for name, layer in layers.items():
        if name not in state:
            raise ValueError(f"masks: {layer!r} has a mask, but the model has no {name!r}")
    aliases = {name: owner for name, owner in _owners(state).items() if name != owner}
    for name, owner in aliases.items():
        if pruned := {name, owner} & set(layers):
            layer = layers[min(pruned)]
            raise ValueError(f"layer {layer}: pruned, but {owner} and {name} are one tensor; untie them first")
    tensors = {
        name: state[name].detach().cpu().clone().contiguous().resolve_conj().resolve_neg()
        for name in state
        if name not in aliases
    }
    for name, layer in layers.items():
        _zero(tensors[name], torch.as_tensor(masks[layer]), layer)
    return tensors, aliases


def weight_name(layer: str) -> str:
    """The name of a layer's weight in the state dict; the layer "" is the model itself."""
    return f"{layer}.weight" if layer else "weight"


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; a ValueError names a file that is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def fill(
    model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], path: str | os.PathLike[str]
) -> nn.Module:
    """Load ``tensors`` and the aliases in ``metadata`` into ``model``, refusing anything that does not fit."""
    stored = tensors | {alias: tensors[name] for alias, name in _aliases(tensors, metadata, path).items()}
    wanted = _state(model)
    for names, what in ((wanted.keys() - stored.keys(), "lacks"), (stored.keys() - wanted.keys(), "also holds")):
        if names:
            raise ValueError(f"{path}: {what} {min(names)!r}; it does not fit a {type(model).__name__}")
    for name, tensor in stored.items():
        own = wanted[name]
        if tensor.shape != own.shape or tensor.dtype != own.dtype:
            found, needed = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, own))
            raise ValueError(f"{path}: {name!r} is {found}, the model wants {needed}")
    load_own(model, stored)
    return model


def _aliases(tensors: dict[str, Tensor], metadata: dict[str, str], path: str | os.PathLike[str]) -> dict[str, str]:
    """Alias -> the name it is stored under, both as the file says."""
    text = metadata.get(SHARED, "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(n, str) and n in tensors for n in found.values()):
        raise ValueError(f"{path}: {SHARED} is {text[:80]!r}, wanted names of tensors in the file")
    return found


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's parameters and buffers."""
    seal = hashlib.sha256()
    for name, tensor in _state(model).items():
        seal.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            plain = tensor.detach().cpu().resolve_conj().resolve_neg()
            seal.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seal.hexdigest()


def architecture_sha256(model: nn.Module) -> str:
    """SHA-256 over what a model computes besides its state dict, as far as its modules tell.

    The classes of its modules, their plain attributes (numbers, words, functions: heads, activations, strides) and the
    buffers that state dicts leave out. The code of the forward methods is not read.
    """
    seal = hashlib.sha256()
    for name, module in model.named_modules():
        seal.update(f"{name} {type(module).__qualname__}".encode())
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key not in _NO_MATTER:
                seal.update(f"{key} {_told(value)}".encode())
        for key in sorted(module._non_persistent_buffers_set):
            if (buffer := module._buffers[key]) is not None:
                seal.update(f"{key} {buffer.dtype} {tuple(buffer.shape)}".encode())
                seal.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return seal.hexdigest()


def _told(value: Any) -> str:
    """A plain attribute in words that another process would use too; of anything else the class."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_told, value))})"
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _state(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"state dict: {name!r} is a {kind}, only tensors can be stored; prune before quantising")
    return state


def _owners(state: dict[str, Tensor]) -> dict[str, str]:
    """Name -> first name of the very same tensor (storage, offset, shape, strides, and how its bits are read)."""
    first: dict[Any, str] = {}
    owners = {}
    for name, tensor in state.items():
        read_as = tensor.dtype, tensor.is_conj(), tensor.is_neg()
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), *read_as) if tensor.numel() else name
        owners[name] = first.setdefault(key, name)
    return owners


def _zero(weight: Tensor, mask: Tensor, layer: str) -> None:
    """Make the pruned zeros +0.0; anything but a zero there is an error."""
    mask = mask.cpu()
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"layer {layer}: its mask is {mask.dtype} {tuple(mask.shape)}, wanted bool {tuple(weight.shape)}"
        )
    if wrong := int((weight[~mask] != 0).sum()):
        raise ValueError(f"layer {layer}: {wrong} weights are not zero where the mask prunes")
    weight.masked_fill_(~mask, 0.0)
