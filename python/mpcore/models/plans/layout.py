"""Rules of the operations that move entries and change none: which axis, or run of an axis, ends up where."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch.fx import Node

from mpcore.models.plans.axes import Axes, Key, shape

Call = Any
"""A torch.fx.Node that calls an operation; its arguments have no static types."""
INDEXED = "an axis that is indexed"
MERGED = "an axis that is split or merged"
MOST_HEADS = 256
"""More repetitions of one order in an axis are not looked for."""


def operation(node: Call) -> str:
    """``aten.add_.Tensor`` -> ``add``: the name of an operation without overload and in-place mark."""
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")


def argument(node: Call, position: int, name: str, default: Any = None) -> Any:
    """What the call is given at a position or by a keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def tie_same(axes: Axes, source: Node, result: Node, *, but: Iterable[int] = (), why: str = "") -> None:
    """Axis i of the one is axis i of the other, except those in ``but``, which are pinned in both."""
    pinned = {axis % len(shape(source)) for axis in but}
    for axis in range(len(shape(source))):
        if axis in pinned:
            axes.pin((source, axis), why)
            axes.pin((result, axis), why)
        else:
            axes.tie((source, axis), (result, axis))


def _part(axes: Axes, whole: Node, start: int, part: Node, dim: int) -> None:
    """``part`` is what ``whole`` has from ``start`` on along ``dim``."""
    dim %= len(shape(whole))
    for axis in range(len(shape(whole))):
        axes.tie_part((whole, axis), start if axis == dim else 0, (part, axis))


def _permute(axes: Axes, node: Call) -> None:
    for place, axis in enumerate(node.args[1]):
        axes.tie((node.args[0], axis), (node, place))


def _transpose(axes: Axes, node: Call) -> None:
    x, first, second = node.args
    places = list(range(len(shape(x))))
    places[first], places[second] = places[second], places[first]
    for place, axis in enumerate(places):
        axes.tie((x, axis), (node, place))


def _reshape(axes: Axes, node: Call) -> None:
    """Axes that keep their size in row-major order stay; others are pinned, but for the channels of heads."""
    x = node.args[0]
    if 0 in shape(x) or math.prod(shape(x)) != math.prod(shape(node)):
        axes.pin_all((x, node), "an empty tensor, or one whose bytes are read as another type")
        return
    before, after = ([axis for axis, size in enumerate(shape(n)) if size != 1] for n in (x, node))
    while before and after:
        left, right = [before.pop(0)], [after.pop(0)]
        while (a := math.prod(shape(x)[i] for i in left)) != (b := math.prod(shape(node)[i] for i in right)):
            if a < b:
                left.append(before.pop(0))
            else:
                right.append(after.pop(0))
        if len(left) == len(right) == 1:
            axes.tie((x, left[0]), (node, right[0]))
            continue
        if len(left) == 1:
            _heads(axes, (x, left[0]), [(node, axis) for axis in right])
        elif len(right) == 1:
            _heads(axes, (node, right[0]), [(x, axis) for axis in left])
        else:
            for key in (*((x, axis) for axis in left), *((node, axis) for axis in right)):
                axes.pin(key, MERGED)


def _heads(axes: Axes, merged: Key, split: list[Key]) -> None:
    """``merged`` has the last axis of ``split`` once for each position of the others, as channels of attention heads.

    These runs move together, the other axes stay.
    """
    for key in split[:-1]:
        axes.pin(key, MERGED)
    inner = split[-1]
    repeats = math.prod(shape(node)[axis] for node, axis in split[:-1])
    if repeats > MOST_HEADS or all(run.reason for run in axes.runs(inner)):
        axes.pin(merged, MERGED)
        axes.pin(inner, MERGED)
        return
    for repeat in range(repeats):
        axes.tie_part(merged, repeat * shape(inner[0])[inner[1]], inner)


def _expand(axes: Axes, node: Call) -> None:
    x = node.args[0]
    for axis in range(-len(shape(x)), 0):
        if shape(x)[axis] == shape(node)[axis]:
            axes.tie((x, axis), (node, axis))


def _repeat(axes: Axes, node: Call) -> None:
    x, new = node.args[0], len(shape(node)) - len(shape(node.args[0]))
    for axis, size in enumerate(shape(x)):
        for copy in range(shape(node)[new + axis] // size if size else 0):
            axes.tie_part((node, new + axis), copy * size, (x, axis))


def _index(axes: Axes, node: Call) -> None:
    """One axis of ``x`` is read at the places that a tensor lists; its own axes stand there."""
    x, places = node.args[:2]
    found = [(axis, index) for axis, index in enumerate(places) if index is not None]
    if len(found) != 1 or len(shape(node)) != len(shape(x)) - 1 + len(shape(found[0][1])):
        axes.pin_all((*node.all_input_nodes, node), "axes that are indexed together")
        return
    dim, index = found[0]
    axes.pin((x, dim), INDEXED)
    axes.pin_all([index], INDEXED)
    for axis in range(dim, dim + len(shape(index))):
        axes.pin((node, axis), INDEXED)
    for axis in range(len(shape(x))):
        if axis != dim:
            axes.tie((x, axis), (node, axis if axis < dim else axis + len(shape(index)) - 1))


def _select(axes: Axes, node: Call) -> None:
    _drop_axis(axes, node.args[0], node, node.args[1])


def _drop_axis(axes: Axes, x: Node, node: Call, dim: int) -> None:
    dim %= len(shape(x))
    axes.pin((x, dim), INDEXED)
    for axis in range(len(shape(x))):
        if axis != dim:
            axes.tie((x, axis), (node, axis - (axis > dim)))


def _slice(axes: Axes, node: Call) -> None:
    x, dim, step = node.args[0], argument(node, 1, "dim", 0), argument(node, 4, "step", 1)
    if step != 1:
        tie_same(axes, x, node, but=(dim,), why="an axis that is sliced in steps")
        return
    size, start = shape(x)[dim], argument(node, 2, "start") or 0
    _part(axes, x, min(max(start + size if start < 0 else start, 0), size), node, dim)


def _cat(axes: Axes, node: Call) -> None:
    dim, start = argument(node, 1, "dim", 0), 0
    for x in node.args[0]:
        if len(shape(x)) == len(shape(node)):  # torch lets an empty vector stand among tensors of any shape
            _part(axes, node, start, x, dim)
            start += shape(x)[dim]


def _stack(axes: Axes, node: Call) -> None:
    dim = argument(node, 1, "dim", 0) % len(shape(node))
    axes.pin((node, dim), "an axis that is stacked")
    for x in node.args[0]:
        for axis in range(len(shape(x))):
            axes.tie((x, axis), (node, axis + (axis >= dim)))


def _pad(axes: Axes, node: Call) -> None:
    x, widths = node.args[0], node.args[1]
    padded = [-1 - k // 2 for k, width in enumerate(widths) if width]
    tie_same(axes, x, node, but=padded, why="an axis that is padded")


def _roll(axes: Axes, node: Call) -> None:
    x, dims = node.args[0], argument(node, 2, "dims") or range(len(shape(node)))
    tie_same(axes, x, node, but=dims, why="an axis that is rolled")


def _getitem(axes: Axes, node: Call) -> None:
    source = node.args[0]
    if operation(source) == "unbind":
        _drop_axis(axes, source.args[0], node, argument(source, 1, "dim", 0))
    elif operation(source) in ("split", "chunk", "split_with_sizes"):
        dim, before = argument(source, 2, "dim", 0), source.meta["val"][: node.args[1]]
        _part(axes, source.args[0], sum(int(part.shape[dim]) for part in before), node, dim)
    else:
        axes.pin_all([node], f"{operation(source)} has no rule")


Rule = Callable[[Axes, Call], None]


def rules(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    """Operation -> its rule, from pairs of a rule and the operations it holds for."""
    return {name: rule for rule, names in rows for name in names.split()}


LAYOUT = rules(
    (_reshape, "view view_as reshape reshape_as flatten squeeze unsqueeze _unsafe_view unflatten"),
    (_permute, "permute"),
    (_transpose, "transpose swapaxes swapdims"),
    (_expand, "expand expand_as"),
    (_repeat, "repeat"),
    (_index, "index"),
    (_select, "select"),
    (_slice, "slice"),
    (_cat, "cat"),
    (_stack, "stack"),
    (_pad, "pad"),
    (_roll, "roll"),
    (_getitem, "getitem"),
)
