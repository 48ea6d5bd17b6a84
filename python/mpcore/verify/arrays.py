"""Masks keep exactly N of every M; pruned weights are +0.0 bit for bit and the others finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpcore.checkpoint import Weights
from mpcore.records import Manifest, Pattern
from mpcore.verify.audit import Audit

Array = np.ndarray[Any, Any]

_MOST_GROUPS = 8  # problems listed per layer before the rest is only counted


def check_masks(audit: Audit, manifest: Manifest) -> dict[str, Array]:
    """Recount every group of every mask along the input channels; returns the masks that could be read."""
    stored = audit.weights("masks.safetensors")
    if stored is None:
        return {}
    for name in sorted(set(stored) ^ set(manifest.patterns)):
        where = "has a mask but no pattern in manifest.json" if name in stored else "has a pattern but no mask"
        audit.add(where, layer=name)
    masks = {}
    for name in sorted(set(stored) & set(manifest.patterns)):
        mask = _tensor(audit, stored, name, layer=name)
        if mask is None:
            continue
        if mask.dtype != np.bool_:
            audit.add(f"mask is {stored.dtypes()[name]}, wanted BOOL", layer=name)
            continue
        _check_groups(audit, name, mask, manifest.patterns[name])
        masks[name] = mask
    return masks


def check_weights(audit: Audit, file: str, masks: Mapping[str, Array]) -> None:
    """All floating-point tensors of ``file`` are finite; weights under a mask are +0.0 where it is false."""
    stored = audit.weights(file)
    if stored is None:
        return
    for layer in sorted(set(masks) - {name.removesuffix(".weight") for name in stored}):
        audit.add(f"{file} holds no {layer}.weight", layer=layer)
    for name in stored:
        layer = name.removesuffix(".weight") if name.endswith(".weight") else ""
        weight = _tensor(audit, stored, name, layer=layer)
        if weight is not None and weight.dtype.kind != "f" and layer in masks:
            audit.add(f"{file}: the pruned weight is {stored.dtypes()[name]}, wanted floating point", layer=layer)
        if weight is None or weight.dtype.kind != "f":
            continue
        audit.checked["tensors"] += 1
        if not np.isfinite(weight).all():
            audit.add(f"{file}: {name} holds NaN or infinity", layer=layer)
        if layer in masks:
            _check_zeros(audit, file, layer, weight, masks[layer])


def check_tensors(audit: Audit, file: str, dense: str = "dense.safetensors") -> None:
    """``file`` holds the tensors of the dense model: no other names, and the same shapes."""
    stored, before = audit.weights(file), audit.weights(dense)
    if stored is None or before is None:
        return
    found, wanted = stored.shapes(), before.shapes()
    for name in sorted(found.keys() ^ wanted.keys()):
        audit.add(f"{name} is in only one of {file} and {dense}")
    for name in sorted(found.keys() & wanted.keys()):
        same = found[name] == wanted[name]
        audit.expect(same, f"{name} has shape {found[name]} in {file} and {wanted[name]} in {dense}")


def group_view(array: Array, group: int) -> Array | None:
    """(rows, groups, M) view of a weight along its input channels; None where the groups do not fit.

    Linear (O, C): groups along C. Convolution (O, C, kh, kw): rows of kh*kw*C with C fastest.
    """
    if array.ndim not in (2, 4) or array.shape[1] % group or 0 in array.shape:
        return None
    channels_last = np.moveaxis(array, 1, -1)
    return channels_last.reshape(array.shape[0], -1, group)


def _tensor(audit: Audit, stored: Weights, name: str, *, layer: str) -> Array | None:
    try:
        return stored[name]
    except (ValueError, OSError) as error:
        audit.add(str(error).replace(f"{audit.folder}/", ""), layer=layer)
        return None


def _check_groups(audit: Audit, layer: str, mask: Array, pattern: Pattern) -> None:
    groups = group_view(mask, pattern.group)
    if groups is None:
        audit.add(f"mask of shape {mask.shape} does not divide into groups of {pattern.group} channels", layer=layer)
        return
    counts = groups.sum(axis=2).reshape(-1)
    audit.checked["masks"] += 1
    audit.checked["groups"] += counts.size
    wrong = np.flatnonzero(counts != pattern.keep)
    for index in wrong[:_MOST_GROUPS]:
        row, place = divmod(int(index), groups.shape[1])
        first = place * pattern.group
        audit.add(
            f"mask keeps {counts[index]} of {pattern.group} weights, wanted {pattern.keep} "
            f"(row {row}, columns {first} to {first + pattern.group - 1})",
            layer=layer,
            group=int(index),
        )
    if wrong.size > _MOST_GROUPS:
        audit.add(f"{wrong.size} of {counts.size} groups do not keep exactly {pattern}", layer=layer)


def _check_zeros(audit: Audit, file: str, layer: str, weight: Array, mask: Array) -> None:
    if weight.shape != mask.shape:
        audit.add(f"{file}: weight has shape {weight.shape}, the mask {mask.shape}", layer=layer)
        return
    bits = weight.view(f"u{weight.itemsize}")
    wrong = np.flatnonzero((bits != 0) & ~mask)
    audit.checked["pruned_weights"] += int(mask.size - np.count_nonzero(mask))
    if wrong.size:
        place = tuple(int(i) for i in np.unravel_index(wrong[0], weight.shape))
        value = weight[place]
        audit.add(f"{file}: {wrong.size} pruned weights are not +0.0; the first, at {place}, is {value}", layer=layer)
