"""How each operation of an exported graph treats the axes of its tensors.

If all axes of a class are reordered by the same permutation, every operation with a rule here commutes with it: a
linear layer sums over its inputs, a batch normalisation treats channels alike. Axes that an operation reads by
position, and all axes of an operation without a rule, are pinned. What is concatenated, split or sliced is moved run by
run.
"""

from __future__ import annotations

from torch.fx import Node

from mpcore.models.plans.axes import Axes, Key, shape
from mpcore.models.plans.layout import LAYOUT, Call, argument, operation, rules, tie_same


def visit(axes: Axes, node: Node) -> None:
    """Apply the rule of one call; without one everything it touches is pinned."""
    rule = RULES.get(operation(node))
    if rule is None:
        axes.pin_all((*node.all_input_nodes, node), f"{operation(node)} has no rule")
    else:
        rule(axes, node)


def _pointwise(axes: Axes, node: Call) -> None:
    sizes, adds = shape(node), operation(node) in ("add", "sub", "rsub", "addcmul", "lerp")
    for axis in range(-len(sizes), 0):
        inputs = [x for x in node.all_input_nodes if len(shape(x)) >= -axis and shape(x)[axis] == sizes[axis]]
        for x in inputs:
            axes.tie((x, axis), (node, axis))
        if adds and sum(x.op != "placeholder" for x in inputs) > 1:
            axes.mark_stream((node, axis))


def _linear(axes: Axes, node: Call) -> None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    axes.tie((weight, 1), (x, -1))
    axes.tie((weight, 0), (node, -1))
    if bias is not None:
        axes.tie((bias, 0), (weight, 0))
    for axis in range(len(shape(x)) - 1):
        axes.tie((x, axis), (node, axis))


def _convolution(axes: Axes, node: Call) -> None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    groups, spatial = argument(node, 6, "groups", 1), "a position of a convolution"
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
    tie_same(axes, node.args[0], node)
    for values in node.all_input_nodes:
        if values is not node.args[0]:
            axes.tie((values, 0), (node, 1))


def _layer_norm(axes: Axes, node: Call) -> None:
    x, width = node.args[0], len(node.args[1])
    tie_same(axes, x, node, but=range(-width, 0) if width > 1 else (), why="a normalisation over several axes")
    for values in node.all_input_nodes:
        if values is not x:
            axes.tie((values, -1), (node, -1))
            axes.pin_all([values] if width > 1 else [], "a normalisation over several axes")


def _group_norm(axes: Axes, node: Call) -> None:
    x, groups = node.args[0], node.args[1]
    several = groups not in (1, shape(x)[1])
    tie_same(axes, x, node, but=(1,) if several else (), why=f"a normalisation in {groups} groups")
    for values in node.all_input_nodes:
        if values is not x:
            axes.tie((values, 0), (node, 1))


def _prelu(axes: Axes, node: Call) -> None:
    tie_same(axes, node.args[0], node)
    if shape(node.args[1]) != (1,):
        axes.tie((node.args[1], 0), (node, 1))


def _reduce(axes: Axes, node: Call) -> None:
    """A sum, mean or norm does not see the order of what it runs over."""
    x = node.args[0]
    dims = argument(node, 2 if operation(node) == "linalg_vector_norm" else 1, "dim")
    listed = [dims] if isinstance(dims, int) else list(dims or range(len(shape(x))))
    reduced = {dim % len(shape(x)) for dim in listed}
    left = [axis for axis in range(len(shape(x))) if axis not in reduced]
    if not left:
        return
    keeps = len(shape(node)) == len(shape(x))
    for place, axis in enumerate(left):
        axes.tie((x, axis), (node, axis if keeps else place))


def _pool(axes: Axes, node: Call) -> None:
    window = range(-1 if "1d" in operation(node) else -2, 0)
    tie_same(axes, node.args[0], node, but=window, why="a position of a pooling window")


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
    tie_same(axes, node.args[0], node)


def _create(axes: Axes, node: Call) -> None:
    axes.pin_all([node], "a constant made in the forward pass")


def _several(_axes: Axes, _node: Call) -> None:
    """Several results; each is tied where it is taken out."""


def _check(_axes: Axes, _node: Call) -> None:
    """Looks at a tensor, element type or device, and gives nothing."""


RULES = LAYOUT | rules(
    (
        _pointwise,
        "add sub mul div neg pow sqrt rsqrt exp log abs clamp maximum minimum reciprocal square where masked_fill fill "
        "rsub addcmul addcdiv lerp exp2 expm1 log2 log1p sin cos floor ceil round sign clamp_min clamp_max relu relu6 "
        "hardtanh leaky_relu elu celu selu gelu silu mish sigmoid log_sigmoid hardsigmoid hardswish tanh softplus erf "
        "dropout feature_dropout alpha_dropout contiguous clone alias detach to _to_copy type_as lift_fresh_copy eq ne "
        "lt gt le ge logical_and logical_or logical_not",
    ),
    (_reduce, "mean sum amax amin linalg_vector_norm"),
    (
        _pool,
        "max_pool1d avg_pool1d adaptive_avg_pool1d max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d",
    ),
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
    (_attention, "scaled_dot_product_attention"),
    (_embedding, "embedding"),
)
"""Operation -> its rule."""
