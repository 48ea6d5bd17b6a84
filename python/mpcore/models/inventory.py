"""Every Linear and Conv2d of a model: what it is, whether it can be pruned, and if not, why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mpcore.models import plans
from mpcore.models.evaluate import check_module
from mpcore.records import LayerInfo, LayerInventory
from mpcore.roles import HEADS, check_skip

OTHERS = (
    nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear,
    nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
"""Layers with matrices of weights that are listed, and why they are left alone."""


def inventory(model: nn.Module, *, skip: Sequence[str] = (), named: Collection[str] = ()) -> LayerInventory:
    """List every Linear and Conv2d of ``model`` in the order of ``named_modules()``.

    Depthwise and grouped convolutions, classifier heads, layers with shared or parametrised weights, layers that
    nn.MultiheadAttention reads without calling them and layers that match a glob of ``skip`` are left alone;
    ``reason`` says which it is. Other layers with a matrix of weights (Conv1d, Conv3d, recurrent ones, the Conv1D of
    GPT-2, ...) are listed as not prunable. Whether the columns fit a pattern is the budget's business.

    Args:
        model: left untouched.
        skip: globs over layer names.
        named: layers that are asked for by their full names: being a classifier head or a stem does not hold them back.

    Raises:
        TypeError: if ``model`` is not an nn.Module, or ``skip`` is one string.
        ValueError: if it holds no Linear and no Conv2d or a weight without a shape, or a glob of ``skip`` matches none.
    """
    check_module(model, "model")
    tied = shared(model, "weight")
    permutable = {name for group in plans.find(model) for name in group.consumers}
    modules = dict(model.named_modules())
    matched = {name: module for name, module in modules.items() if isinstance(module, (nn.Linear, nn.Conv2d))}
    heads = _heads(matched, modules)
    layers = []
    for name, module in modules.items():
        if name not in matched:
            layers += _other_kind(name, module)
            continue
        parent = modules.get(name.rpartition(".")[0])
        role = "head" if name in heads else _role(name, module)
        reason = _why_not(name, module, role, parent, tied, skip, named)
        layers.append(
            LayerInfo(
                name=name,
                kind="linear" if isinstance(module, nn.Linear) else "conv2d",
                shape=_shape(module),
                role=role,
                prunable=not reason,
                permutable=not reason and name in permutable,
                reason=reason,
                groups=getattr(module, "groups", 1),
            )
        )
    if not matched:
        raise ValueError(f"model: {type(model).__name__} has no Linear and no Conv2d")
    check_skip(skip, [layer.name for layer in layers])
    return LayerInventory(tuple(layers), sum(parameter.numel() for parameter in model.parameters()))


def check_copyable(model: nn.Module) -> None:
    """Refuse a model that cannot be copied, and say which module is in the way and what to do about it.

    Raises:
        ValueError: if a module holds a tensor that autograd computed, such as a weight that a hook sets.
    """
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not isinstance(value, Tensor) or value.is_leaf:
                continue
            if remedy := _remedy(module):
                raise ValueError(f"layer {name}: its {key} is computed by a hook; {remedy}")
            raise ValueError(
                f"module {name!r}: its attribute {key!r} is part of an autograd graph, so the model cannot be copied; "
                f"delete it, or keep {key}.detach()"
            )


def _remedy(module: nn.Module) -> str:
    """What makes a weight that a hook of torch.nn.utils computes a plain parameter; empty where none does."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            return f"call torch.nn.utils.prune.remove(layer, {hook._tensor_name!r}) first"
        for kind, function in ((SpectralNorm, "remove_spectral_norm"), (WeightNorm, "remove_weight_norm")):
            if isinstance(hook, kind):
                return f"call torch.nn.utils.{function}(layer, {hook.name!r}) first"
    return ""


def _other_kind(name: str, module: nn.Module) -> list[LayerInfo]:
    """A layer with matrices of weights that is no Linear and no Conv2d: its largest, and why it is left alone."""
    own: list[Tensor] = [tensor for tensor in module._parameters.values() if tensor is not None and tensor.ndim > 1]
    kind, reason = type(module).__name__, ""
    if kind == "Conv1D" and own:  # of transformers, which GPT-2 is made of
        own = [own[0].T]
        reason = "a Conv1D, whose weight is (in, out); put an nn.Linear of the transposed weight in its place"
    elif isinstance(module, OTHERS) and own:
        reason = f"a {kind}: only the weights of Linear and Conv2d are pruned"
    if not reason:
        return []
    shape = tuple(max(own, key=Tensor.numel).shape)
    role = _role(name, module)
    return [LayerInfo(name, kind.lower(), shape, role, prunable=False, permutable=False, reason=reason)]


def _shape(module: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """The weight's shape, without computing a weight that is parametrised: that may change buffers."""
    weight = module._parameters.get("weight")
    if weight is not None:
        return tuple(weight.shape)
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels // module.groups, *module.kernel_size


def _heads(layers: Mapping[str, nn.Linear | nn.Conv2d], modules: Mapping[str, nn.Module]) -> set[str]:
    """The layers that give the answer of the network, among those that are called a head.

    A name alone does not make one: no later head takes its outputs, as in the classifiers of VGG (of two with the same
    number of outputs that is so only in a chain: DeiT's two heads stand side by side), and where the part of
    the name lies deeper than in others, as in the gates ``attn.fc`` of VoVNet, it has as many outputs as the last of
    those.
    """
    depth = {
        name: next(k for k, part in enumerate(name.split(".")) if part in HEADS) for name in layers if _called(name)
    }
    named, top = list(depth), min(depth.values(), default=0)
    outputs = {name: _shape(layers[name])[0] for name in named}
    inputs = {name: _shape(layers[name])[1] * getattr(layers[name], "groups", 1) for name in named}
    last = next((outputs[name] for name in reversed(named) if depth[name] == top), 0)

    def feeds(name: str, later: str) -> bool:
        parent, other = name.rpartition(".")[0], later.rpartition(".")[0]
        chained = parent == other and isinstance(modules[parent], nn.Sequential)
        return outputs[name] == inputs[later] and (chained or outputs[name] != last)

    return {
        name
        for k, name in enumerate(named)
        if (depth[name] == top or outputs[name] == last) and not any(feeds(name, later) for later in named[k + 1 :])
    }


def _called(name: str) -> bool:
    return not HEADS.isdisjoint(name.split("."))


def _role(name: str, module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return "depthwise" if module.groups == module.in_channels else "grouped"
        if module.in_channels <= 4:
            return "stem"
        return "pointwise" if module.kernel_size == (1, 1) else "conv"
    if "attn" in name or "attention" in name:
        return "attention"
    return "mlp" if "mlp" in name or ".fc" in name else "linear"


def _why_not(
    name: str,
    module: nn.Linear | nn.Conv2d,
    role: str,
    parent: nn.Module | None,
    tied: dict[str, str],
    skip: Sequence[str],
    named: Collection[str],
) -> str:
    """Why a layer is left alone, in words; empty if it is not."""
    if glob := next((glob for glob in skip if fnmatchcase(name, glob)), None):
        return f"matches skip = {glob!r}"
    if role == "head" and name not in named:
        return "classifier head"
    if role == "depthwise":
        return "depthwise: each output sees one input channel"
    if role == "grouped":
        return f"grouped convolution (groups = {module.groups})"
    if role == "stem" and name not in named:
        return f"stem: only {module.in_channels} input channels"
    if name in tied:
        return f"its weight is shared with {tied[name]}"
    if parametrize.is_parametrized(module):
        return "its weight is parametrised"
    if not plans.plain(module):
        remedy = _remedy(module)
        return "its weight is computed by a hook" + (f"; {remedy}" if remedy else "")
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads the weight without calling the layer, so its inputs cannot be observed"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}, not floating point"
    return ""


def shared(model: nn.Module, key: str) -> dict[str, str]:
    """Module name -> another module whose parameter ``key`` is the very same numbers (tied parameters)."""
    holders: dict[Any, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if (tensor := module._parameters.get(key)) is not None:
            placed = tensor.numel() and not tensor.is_meta
            holders[(tensor.data_ptr(), tensor.shape, tensor.stride()) if placed else id(tensor)].append(name)
    ties = [names for names in holders.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in ties for name in names}
