"""The layers of a checkpoint, told from names, shapes and element types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from mpcore.checkpoint import Weights
from mpcore.records import LayerInfo, LayerInventory
from mpcore.roles import check_skip, role_by_name

_FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
_WHY = {
    "embedding": "embedding: a table that is read, not a matrix that is applied",
    "head": "classifier head",
    "router": "router: chooses the experts",
}


def inventory_of(weights: Weights, *, skip: Sequence[str] = ()) -> LayerInventory:
    """Every ``*.weight`` of 2 or 4 dimensions, prunable or why not, in the order of the checkpoint.

    A weight (out, in) of 2 dimensions counts as a Linear. Embeddings, heads and routers are left alone by name,
    convolutions because groups need to know what they are, and layers that match a glob of ``skip``.

    Raises:
        TypeError: if ``skip`` is one string.
        ValueError: if there is none, or a glob of ``skip`` matches none.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from mpcore.checkpoint import open_weights, save_tensors
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_tensors(file, {"wte.weight": np.ones((9, 4), "f4"), "mlp.up.weight": np.ones((8, 4), "f4")})
        >>> [(layer.name, layer.role, layer.prunable) for layer in inventory_of(open_weights(file)).layers]
        [('mlp.up', 'mlp', True), ('wte', 'embedding', False)]
    """
    shapes, types = weights.shapes(), weights.dtypes()
    transposed = _stores_transposed(shapes)
    layers = []
    for parameter, shape in shapes.items():
        name = parameter.removesuffix(".weight")
        if name == parameter or len(shape) not in (2, 4):
            continue
        role = role_by_name(name)
        reason = _why_not(name, role, shape, types[parameter], transposed, skip)
        kind = "linear" if len(shape) == 2 else "conv2d"
        layers.append(LayerInfo(name, kind, shape, role, not reason, False, reason))
    if not layers:
        raise ValueError(f"{weights.path}: holds no '*.weight' of 2 dimensions")
    check_skip(skip, [layer.name for layer in layers])
    return LayerInventory(tuple(layers), sum(math.prod(shape) for shape in shapes.values()))


def _why_not(name: str, role: str, shape: tuple[int, ...], dtype: str, transposed: bool, skip: Sequence[str]) -> str:
    if glob := next((glob for glob in skip if fnmatchcase(name, glob)), None):
        return f"matches skip = {glob!r}"
    if role in _WHY:
        return _WHY[role]
    if len(shape) == 4:
        return "convolution: prune it with its model at hand"
    if dtype not in _FLOATING:
        return f"its weight is {dtype}, wanted F16, BF16, F32 or F64"
    if 0 in shape:
        return f"its weight of shape {shape} is empty"
    if transposed and name.rpartition(".")[2].startswith("c_"):
        return "stored as (in, out), as GPT-2 does: its groups would run along the outputs"
    return ""


def _stores_transposed(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether layers named ``c_*`` are (in, out): the one that widens is then wider than tall."""
    widening = (".c_attn.weight", ".c_fc.weight")
    return any(len(shape) == 2 and name.endswith(widening) and shape[0] < shape[1] for name, shape in shapes.items())
