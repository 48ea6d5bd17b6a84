"""Every Linear and Conv2d of a model: what it is, whether it can be pruned, and if not, why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn
from torch.nn.utils import parametrize

from mpcore.models import plans
from mpcore.records import LayerInfo, LayerInventory
from mpcore.roles import HEADS


def inventory(model: nn.Module, *, skip: Sequence[str] = ()) -> LayerInventory:
    """List every Linear and Conv2d of ``model`` in the order of ``named_modules()``.

    Depthwise and grouped convolutions, classifier heads, layers with shared or parametrised weights, layers that
    nn.MultiheadAttention reads without calling them and layers that match a glob of ``skip`` are left alone;
    ``reason`` says which it is. Whether the columns fit a pattern is the budget's business.

    Raises:
        TypeError: if ``model`` is not an nn.Module.
        ValueError: if it holds no Linear and no Conv2d.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__} is not a torch.nn.Module")
    shared = _shared_weights(model)
    permutable = {name for group in plans.find(model) for name in group.consumers}
    modules = dict(model.named_modules())
    layers = []
    for name, module in modules.items():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        parent = modules.get(name.rpartition(".")[0])
        reason = _why_not(name, module, parent, shared, skip)
        layers.append(
            LayerInfo(
                name=name,
                kind="linear" if isinstance(module, nn.Linear) else "conv2d",
                shape=tuple(module.weight.shape),
                role=_role(name, module),
                prunable=not reason,
                permutable=not reason and name in permutable,
                reason=reason,
                groups=getattr(module, "groups", 1),
            )
        )
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no Linear and no Conv2d")
    return LayerInventory(tuple(layers), sum(parameter.numel() for parameter in model.parameters()))


def _role(name: str, module: nn.Linear | nn.Conv2d) -> str:
    if not HEADS.isdisjoint(name.split(".")):
        return "head"
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
    name: str, module: nn.Linear | nn.Conv2d, parent: nn.Module | None, shared: dict[str, str], skip: Sequence[str]
) -> str:
    """Why a layer is left alone, in words; empty if it is not."""
    role = _role(name, module)
    if glob := next((glob for glob in skip if fnmatch(name, glob)), None):
        return f"matches skip = {glob!r}"
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return "its weight has no shape yet (lazy module)"
    if role == "head":
        return "classifier head"
    if role == "depthwise":
        return "depthwise: each output sees one input channel"
    if role == "grouped":
        return f"grouped convolution (groups = {module.groups})"
    if role == "stem":
        return f"stem: only {module.in_channels} input channels"
    if name in shared:
        return f"its weight is shared with {shared[name]}"
    if parametrize.is_parametrized(module) or hasattr(module, "weight_g"):
        return "its weight is parametrised"
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads the weight without calling the layer, so its inputs cannot be observed"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}, not floating point"
    return ""


def _shared_weights(model: nn.Module) -> dict[str, str]:
    """Module name -> another module that holds the very same weight (tied parameters)."""
    holders: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            holders[id(weight)].append(name)
    ties = [names for names in holders.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in ties for name in names}
