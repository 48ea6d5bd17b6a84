"""How each operation of an exported graph treats the axes of its tensors.

If all axes of a class are reordered by the same permutation, every operation with a rule here commutes with it: a
linear layer sums over its inputs, a batch normalisation treats channels alike. Axes that an operation reads by
position, and all axes of an operation without a rule, are pinned. What is concatenated, split or sliced is moved run by
run.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch.fx import Node

from mpcore.models.plans.axes import Axes, Key, shape

Call = Any
"""A torch.fx.Node that calls an operation; its arguments have no static types."""


def visit(axes: Axes, node: Node) -> None:
    """Apply the rule of one call; without one everything it touches is pinned."""
    rule = RULES.get(_name(node))
    if rule is None:
        axes.pin_all((*node.all_input_nodes, node), f"{_name(node)} has no rule")
    else:
        rule(axes, node)


def _name(node: Call) -> str:
    """``aten.add_.Tensor`` -> ``add``: the name of an operation without overload and in-place mark."""
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")


def _argument(node: Call, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _same(axes: Axes, source: Node, result: Node, *, but: Iterable[int] = (), why: str = "") -> None:
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


def _pointwise(axes: Axes, node: Call) -> None:
    sizes, adds = shape(node), _name(node) in ("add", "sub", "rsub", "addcmul", "lerp")
    for axis in range(-len(sizes), 0):
        inputs = [x for x in node.all_input_nodes if len(shape(x)) >= -axis and shape(x)[axis] == sizes[axis]]
        for x in inputs:
            axes.tie((x, axis), (node, axis))
        if adds and sum(x.op != "placeholder" for x in inputs) > 1:
            axes.mark_stream((node, axis))


def _linear(axes: Axes, node: Call) -> None:
    x, weight, bias = node.args[0], node.args[1], _argument(node, 2, "bias")
    axes.tie((weight, 1), (x, -1))
    axes.tie((weight, 0), (node, -1))
    if bias is not None:
        axes.tie((bias, 0), (weight, 0))
    for axis in range(len(shape(x)) - 1):
        axes.tie((x, axis), (node, axis))


def _convolution(axes: Axes, node: Call) -> None:
    x, weight, bias = node.args[0], node.args[1], _argument(node, 2, "bias")
    groups, spatial = _argument(node, 6, "groups", 1), "a position of a convolution"
    if len(shape(x)) != len(shape(weight)):
        axes.pin_all((*node.all_input_nodes, node), "a convolution without a batch axis")
        return
    axes.tie((x, 0), (node, 0))
    for axis in range(2, len(shape(x))):
        for tensor in (x, weight, node):
            axes.pin((tensor, axis), spatial)
    axes.tie((weight, 0), (node, 1))
    if bias is not None:
        axes.tie((bias, 0), (weight, 0))
    if groups == 1:
        axes.tie((weight, 1), (x, 1))
    elif groups == shape(x)[1] == shape(node)[1]:
        axes.tie((x, 1), (node, 1))
    else:
        for key in ((x, 1), (weight, 0), (weight, 1)):
            axes.pin(key, f"a convolution with {groups} groups")


def _batch_norm(axes: Axes, node: Call) -> None:
    _same(axes, node.args[0], node)
    for values in node.all_input_nodes:
        if values is not node.args[0]:
            axes.tie((values, 0), (node, 1))


def _layer_norm(axes: Axes, node: Call) -> None:
    x, width = node.args[0], len(node.args[1])
    _same(axes, x, node, but=range(-width, 0) if width > 1 else (), why="a normalisation over several axes")
    for values in node.all_input_nodes:
        if values is not x:
            axes.tie((values, -1), (node, -1))
            axes.pin_all([values] if width > 1 else [], "a normalisation over several axes")


def _group_norm(axes: Axes, node: Call) -> None:
    x, groups = node.args[0], node.args[1]
    several = groups not in (1, shape(x)[1])
    _same(axes, x, node, but=(1,) if several else (), why=f"a normalisation in {groups} groups")
    for values in node.all_input_nodes:
        if values is not x:
            axes.tie((values, 0), (node, 1))


def _prelu(axes: Axes, node: Call) -> None:
    _same(axes, node.args[0], node)
    if shape(node.args[1]) != (1,):
        axes.tie((node.args[1], 0), (node, 1))


def _reduce(axes: Axes, node: Call) -> None:
    """A sum, mean or norm does not see the order of what it runs over."""
    x = node.args[0]
    dims = _argument(node, 2 if _name(node) == "linalg_vector_norm" else 1, "dim")
    listed = [dims] if isinstance(dims, int) else list(dims or range(len(shape(x))))
    reduced = {dim % len(shape(x)) for dim in listed}
    left = [axis for axis in range(len(shape(x))) if axis not in reduced]
    if not left:
        return
    keeps = len(shape(node)) == len(shape(x))
    for place, axis in enumerate(left):
        axes.tie((x, axis), (node, axis if keeps else place))


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
    """Axes that keep their size in row-major order stay; what is split or merged is pinned."""
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
        for key in (*((x, i) for i in left), *((node, i) for i in right)):
            axes.pin(key, "an axis that is split or merged")


def _expand(axes: Axes, node: Call) -> None:
    x = node.args[0]
    for axis in range(-len(shape(x)), 0):
        if shape(x)[axis] == shape(node)[axis]:
            axes.tie((x, axis), (node, axis))


def _select(axes: Axes, node: Call) -> None:
    _drop_axis(axes, node.args[0], node, node.args[1])


def _drop_axis(axes: Axes, x: Node, node: Call, dim: int) -> None:
    dim %= len(shape(x))
    axes.pin((x, dim), "an axis that is indexed")
    for axis in range(len(shape(x))):
        if axis != dim:
            axes.tie((x, axis), (node, axis - (axis > dim)))


def _slice(axes: Axes, node: Call) -> None:
    x, dim, step = node.args[0], _argument(node, 1, "dim", 0), _argument(node, 4, "step", 1)
    if step != 1:
        _same(axes, x, node, but=(dim,), why="an axis that is sliced in steps")
        return
    size, start = shape(x)[dim], _argument(node, 2, "start") or 0
    _part(axes, x, min(max(start + size if start < 0 else start, 0), size), node, dim)


def _cat(axes: Axes, node: Call) -> None:
    dim, start = _argument(node, 1, "dim", 0), 0
    for x in node.args[0]:
        if len(shape(x)) == len(shape(node)):  # torch lets an empty vector stand among tensors of any shape
            _part(axes, node, start, x, dim)
            start += shape(x)[dim]


def _pool(axes: Axes, node: Call) -> None:
    _same(axes, node.args[0], node, but=(-2, -1), why="a position of a pooling window")


def _pad(axes: Axes, node: Call) -> None:
    x, widths = node.args[0], node.args[1]
    padded = [-1 - k // 2 for k, width in enumerate(widths) if width]
    _same(axes, x, node, but=padded, why="an axis that is padded")


def _roll(axes: Axes, node: Call) -> None:
    x, dims = node.args[0], _argument(node, 2, "dims") or range(len(shape(node)))
    _same(axes, x, node, but=dims, why="an axis that is rolled")


def _matmul(axes: Axes, node: Call) -> None:
    a, b = node.args
    if min(len(shape(a)), len(shape(b))) < 2:
        axes.pin_all((a, b, node), "a product with a vector")
        return
    axes.tie((a, -1), (b, -2))
    axes.tie((a, -2), (node, -2))
    axes.tie((b, -1), (node, -1))
    for x in (a, b):
        for axis in range(-len(shape(x)), -2):
            if shape(x)[axis] == shape(node)[axis]:
                axes.tie((x, axis), (node, axis))


def _einsum(axes: Axes, node: Call) -> None:
    """Axes of one letter move together; a letter that the result lacks is summed over."""
    inputs, arrow, output = node.args[0].replace(" ", "").partition("->")
    terms = [*inputs.split(","), output]
    if not arrow or any("." in term or len(set(term)) < len(term) for term in terms):
        axes.pin_all((*node.all_input_nodes, node), f"einsum {node.args[0]}")
        return
    first: dict[str, Key] = {}
    for tensor, term in zip((*node.args[1], node), terms, strict=True):
        for axis, letter in enumerate(term):
            if shape(tensor)[axis] != 1:  # an axis of one position is broadcast
                axes.tie(first.setdefault(letter, (tensor, axis)), (tensor, axis))


def _attention(axes: Axes, node: Call) -> None:
    """Query and key channels meet in a sum, value channels come out; all else stays."""
    query, key, value = node.args[:3]
    axes.tie((query, -1), (key, -1))
    axes.tie((value, -1), (node, -1))
    for tensor in (*node.all_input_nodes, node):
        inner = tensor in (query, key, value, node)
        for axis in range(len(shape(tensor)) - inner):
            axes.pin((tensor, axis), "tokens or heads of attention")


def _embedding(axes: Axes, node: Call) -> None:
    weight, index = node.args[0], node.args[1]
    axes.pin((weight, 0), "rows of an embedding")
    axes.tie((weight, 1), (node, -1))
    for axis in range(len(shape(index))):
        axes.tie((index, axis), (node, axis))


def _softmax(axes: Axes, node: Call) -> None:
    """Of reordered entries it is the reordered softmax."""
    _same(axes, node.args[0], node)


def _create(axes: Axes, node: Call) -> None:
    axes.pin_all([node], "a constant made in the forward pass")


def _several(_axes: Axes, _node: Call) -> None:
    """Several results; each is tied where it is taken out."""


def _check(_axes: Axes, _node: Call) -> None:
    """Looks at a tensor, element type or device, and gives nothing."""


def _getitem(axes: Axes, node: Call) -> None:
    source = node.args[0]
    if _name(source) == "unbind":
        _drop_axis(axes, source.args[0], node, _argument(source, 1, "dim", 0))
    elif _name(source) in ("split", "chunk", "split_with_sizes"):
        dim, before = _argument(source, 2, "dim", 0), source.meta["val"][: node.args[1]]
        _part(axes, source.args[0], sum(int(part.shape[dim]) for part in before), node, dim)
    else:
        axes.pin_all([node], f"{_name(source)} has no rule")


RULES: dict[str, Callable[[Axes, Call], None]] = {}
"""Operation -> its rule."""

for _rule, _names in (
    (
        _pointwise,
        "add sub mul div neg pow sqrt rsqrt exp log abs clamp maximum minimum reciprocal square where masked_fill fill "
        "rsub addcmul addcdiv lerp exp2 expm1 log2 log1p sin cos floor ceil round sign clamp_min clamp_max relu relu6 "
        "hardtanh leaky_relu elu celu selu gelu silu mish sigmoid log_sigmoid hardsigmoid hardswish tanh softplus erf "
        "dropout feature_dropout alpha_dropout contiguous clone alias detach to _to_copy type_as lift_fresh_copy eq ne "
        "lt gt le ge logical_and logical_or logical_not",
    ),
    (_reshape, "view view_as reshape reshape_as flatten squeeze unsqueeze _unsafe_view unflatten"),
    (_reduce, "mean sum amax amin linalg_vector_norm"),
    (_pool, "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d"),
    (_create, "zeros ones full arange new_zeros new_ones new_full zeros_like ones_like eye"),
    (_check, "_assert_tensor_metadata"),
    (_several, "unbind split chunk split_with_sizes"),
    (_matmul, "matmul bmm mm"),
    (_einsum, "einsum"),
    (_layer_norm, "layer_norm rms_norm"),
    (_softmax, "softmax log_softmax"),
    (_linear, "linear"),
    (_convolution, "conv1d conv2d conv3d"),
    (_batch_norm, "batch_norm"),
    (_group_norm, "group_norm"),
    (_prelu, "prelu"),
    (_permute, "permute"),
    (_transpose, "transpose swapaxes swapdims"),
    (_expand, "expand expand_as"),
    (_select, "select"),
    (_slice, "slice"),
    (_cat, "cat"),
    (_pad, "pad"),
    (_roll, "roll"),
    (_attention, "scaled_dot_product_attention"),
    (_embedding, "embedding"),
    (_getitem, "getitem"),
):
    RULES.update(dict.fromkeys(_names.split(), _rule))
