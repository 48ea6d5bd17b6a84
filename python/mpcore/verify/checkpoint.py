"""A pruned checkpoint, file by file and block by block: groups, exact zeros, finite weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcore.checkpoint import Weights, widened
from mpcore.records import Manifest, Pattern
from mpcore.verify.arithmetic import check_budget, check_inventory, check_plan
from mpcore.verify.audit import Audit
from mpcore.verify.files import check_files

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 22  # weights looked at at a time


def check_checkpoint(audit: Audit, manifest: Manifest) -> None:
    """Everything that can be checked of what ``mpcore.prune_checkpoint`` left."""
    shards = manifest.source["checkpoint"]
    if not isinstance(shards, dict) or any("/" in name or "\\" in name for name in shards):
        audit.add("manifest.json: source does not name the files of the checkpoint")
        return
    check_files(audit, manifest, ("inventory.json", "budget.json", "plan.json", *shards))
    counted: dict[str, tuple[int, tuple[int, ...]]] = {}
    for shard in shards:
        weights, masks = audit.weights(shard), audit.weights(f"masks/{shard}")
        if weights is not None:
            _check_shard(audit, shard, weights, masks or {}, manifest.patterns, counted)
    for layer in sorted(set(manifest.patterns) - set(counted)):
        audit.add("has a pattern but no mask", layer=layer)
    for index in audit.folder.glob("*.safetensors.index.json"):
        audit.weights(index.name)
    inventory = check_inventory(audit, manifest)
    check_budget(audit, manifest, inventory)
    check_plan(audit, manifest, counted, inventory)


def _check_shard(
    audit: Audit,
    file: str,
    weights: Weights,
    masks: Weights | dict[str, Array],
    patterns: dict[str, Pattern],
    counted: dict[str, tuple[int, tuple[int, ...]]],
) -> None:
    for layer in sorted(set(masks) - {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}):
        audit.add(f"masks/{file} has a mask, but {file} no {layer}.weight", layer=layer)
    for name, shape in weights.shapes().items():
        layer = name.removesuffix(".weight") if name.endswith(".weight") else ""
        try:
            if isinstance(masks, Weights) and layer in masks:
                counted[layer] = _check_layer(audit, file, layer, weights, masks, patterns.get(layer)), shape
            else:
                _check_dense(audit, file, name, weights)
        except (ValueError, OSError) as error:
            audit.add(str(error).replace(f"{audit.folder}/", ""), layer=layer)


def _check_dense(audit: Audit, file: str, name: str, weights: Weights) -> None:
    dtype = weights.dtypes()[name]
    if dtype in ("F64", "F32", "F16", "BF16"):
        audit.checked["tensors"] += 1
        finite = all(np.isfinite(widened(block, dtype)).all() for block in weights.blocks(name, values=_BLOCK))
        if not finite:
            audit.add(f"{file}: {name} holds NaN or infinity")


def _check_layer(audit: Audit, file: str, layer: str, weights: Weights, masks: Weights, pattern: Pattern | None) -> int:
    """Count what the mask keeps; notes the first bad group, the first weight that is not zero, anything not finite."""
    name = f"{layer}.weight"
    shape, dtype = weights.shapes()[name], weights.dtypes()[name]
    packed = (shape[0], -(-shape[-1] // 8))
    if pattern is None:
        raise ValueError(f"masks/{file}: has a mask for {layer}, manifest.json no pattern")
    if len(shape) != 2 or masks.shapes()[layer] != packed or masks.dtypes()[layer] != "U8":
        found = f"{masks.dtypes()[layer]} {masks.shapes()[layer]}"
        raise ValueError(f"masks/{file}: mask of {layer} is {found}, weight {shape} wants U8 {packed}")
    if shape[1] % pattern.group:
        raise ValueError(f"{file}: {shape[1]} columns of {layer} are not a multiple of {pattern.group}")
    rows = max(1, _BLOCK // shape[1])
    blocks = zip(
        weights.blocks(name, values=rows * shape[1]), masks.blocks(layer, values=rows * packed[1]), strict=True
    )
    kept = start = 0
    said: set[str] = set()
    for stored, bits in blocks:
        mask = np.unpackbits(bits, axis=1, count=shape[1], bitorder="little").view(np.bool_)
        kept += int(np.count_nonzero(mask))
        for what, group in _faults(stored, dtype, mask, bits, pattern):
            if what not in said:
                said.add(what)
                first = "" if group is None else f" (first in row {start + group // (shape[1] // pattern.group)})"
                place = None if group is None else group + start * (shape[1] // pattern.group)
                audit.add(f"{file}: {what}{first}", layer=layer, group=place)
        start += len(stored)
    audit.checked["tensors"] += 1
    audit.checked["masks"] += 1
    audit.checked["groups"] += shape[0] * (shape[1] // pattern.group)
    audit.checked["pruned_weights"] += shape[0] * shape[1] - kept
    return kept


def _faults(stored: Array, dtype: str, mask: Array, bits: Array, pattern: Pattern) -> list[tuple[str, int | None]]:
    """What is wrong with some rows, and the first group of these rows where it has a place."""
    found: list[tuple[str, int | None]] = []
    counts = mask.reshape(-1, pattern.group).sum(axis=1, dtype=np.uint8)
    if (wrong := np.flatnonzero(counts != pattern.keep)).size:
        found.append((f"groups of the mask do not keep exactly {pattern}", int(wrong[0])))
    if stored.dtype.kind == "b" or dtype not in ("F64", "F32", "F16", "BF16"):
        return [*found, (f"the pruned weight is {dtype}", None)]
    nonzero = (stored.view(f"u{stored.itemsize}") != 0) & ~mask
    if nonzero.any():
        found.append(("pruned weights are not +0.0", int(np.flatnonzero(nonzero)[0]) // pattern.group))
    if not np.isfinite(widened(stored, dtype)).all():
        found.append(("the weight holds NaN or infinity", None))
    spare = 8 * bits.shape[1] - mask.shape[1]
    if spare and (bits[:, -1] >> (8 - spare)).any():
        found.append(("the mask has bits beyond the last column", None))
    return found
