"""A pruned model without its zeros: the kept values, and one bit for every weight.

At 2:4 a bit for every weight takes as much room as the places of the kept ones, at 8:16 half as much, and it needs no
pattern. Values keep their dtype; nothing is rounded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpcore.models.export import SHARED, collect, fill, read
from mpcore.records import atomic

COMPACT = "mpcore-compact-1"
"""Value of the metadata key ``format``."""


def save_compact(model: nn.Module, masks: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write the state dict of ``model``; of every layer in ``masks`` only the kept weights.

    A pruned weight ``w`` becomes ``w.values``, the kept weights in row-major order, and ``w.bits``, uint8, one bit for
    each weight, least significant first; its shape stands in the metadata.

    Args:
        model: on any device.
        masks: layer name -> bool tensor in the weight's shape, true = kept.
        path: the .safetensors file; written whole or not at all.

    Raises:
        ValueError: as :func:`mpcore.models.export.save_model` does.
    """
    tensors, aliases = collect(model, masks)
    shapes = {}
    for layer, mask in masks.items():
        name = f"{layer}.weight"
        weight, kept = tensors.pop(name), mask.cpu()
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
    for name, shape in json.loads(metadata["shapes"]).items():
        values, bits = tensors.pop(f"{name}.values"), tensors.pop(f"{name}.bits")
        count = int(np.prod(shape))
        kept = np.unpackbits(bits.numpy(), bitorder="little")[:count].astype(bool)
        if len(kept) != count or kept.sum() != len(values):
            raise ValueError(f"{path}: {name!r} has {len(values)} values and {kept.sum()} bits set of {count}")
        weight = values.new_zeros(count)
        weight[torch.from_numpy(kept)] = values
        tensors[name] = weight.reshape(shape)
    return fill(model, tensors, metadata, path)
