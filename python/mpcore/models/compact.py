"""A pruned model without its zeros: the kept values, and one bit for every weight.

At 2:4 a bit for every weight takes as much room as the places of the kept ones, at 8:16 half as much, and it needs no
pattern. Values keep their dtype; nothing is rounded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpcore.models.export import SHARED, collect, fill, read, weight_name
from mpcore.records import atomic

COMPACT = "mpcore-compact-1"
"""Value of the metadata key ``format``."""


def save_compact(model: nn.Module, masks: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the state dict of ``model``; of every layer in ``masks`` only the kept weights.

    A pruned weight ``w`` becomes ``w.values``, the kept weights in row-major order, and ``w.bits``, uint8, one bit for
    each weight, least significant first; its shape stands in the metadata.

    Args:
        model: on any device.
        masks: layer name -> bool tensor or array in the weight's shape, true = kept.
        path: the .safetensors file; written whole or not at all.

    Raises:
        ValueError: as :func:`mpcore.models.export.save_model` does.
    """
    tensors, aliases = collect(model, masks)
    shapes = {}
    for layer, mask in masks.items():
        name = weight_name(layer)
        weight, kept = tensors.pop(name), torch.as_tensor(mask).cpu()
        shapes[name] = list(weight.shape)
        tensors[f"{name}.values"] = weight[kept]
        tensors[f"{name}.bits"] = torch.from_numpy(np.packbits(kept.reshape(-1).numpy(), bitorder="little"))
    metadata = {"format": COMPACT, "shapes": json.dumps(shapes), SHARED: json.dumps(aliases)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_compact(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Give ``model`` the weights :func:`save_compact` stored, zeros as exactly +0.0.

    Raises:
        ValueError: if the file is something else or damaged, or does not fit the model.
    """
    tensors, metadata = read(path)
    if metadata.get("format") != COMPACT:
        raise ValueError(f"{path}: format {metadata.get('format')!r} is not {COMPACT!r}")
    for name, shape in _shapes(metadata, path).items():
        try:
            tensors[name] = _unpacked(tensors.pop(f"{name}.values"), tensors.pop(f"{name}.bits"), shape)
        except KeyError as error:
            raise ValueError(f"{path}: lacks {error.args[0]!r}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {name!r} {error}") from None
    return fill(model, tensors, metadata, path)


def _shapes(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> dict[str, list[int]]:
    """Name -> shape of every weight that is stored without its zeros."""
    text = metadata.get("shapes", "")
    try:
        found = json.loads(text)
        if all(type(length) is int and length >= 0 for shape in found.values() for length in shape):
            return dict(found)
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"{path}: its shapes are {text[:80]!r}, wanted a list of lengths for every weight")


def _unpacked(values: Tensor, bits: Tensor, shape: list[int]) -> Tensor:
    """The weight of ``shape``, zeros where no bit is set."""
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.ndim != 1 or len(bits) != -(-count // 8) or values.ndim != 1:
        raise ValueError(
            f"has values {tuple(values.shape)} and bits {bits.dtype} {tuple(bits.shape)} for {count} weights"
        )
    kept = np.unpackbits(bits.numpy(), bitorder="little").astype(bool)
    if kept[count:].any() or kept.sum() != len(values):
        raise ValueError(f"has {len(values)} values and {kept.sum()} bits set of {count}")
    weight = values.new_zeros(count)
    weight[torch.from_numpy(kept[:count])] = values
    return weight.reshape(shape)
