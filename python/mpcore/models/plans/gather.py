"""Channels read in another order at run time, where no order can be folded into the layers before.

The order is a forward pre-hook of the layer, so that names, modules and state dict stay as they are; it costs one copy
of the layer's input.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.batches import layer_input
from mpcore.models.plans.find import plain
from mpcore.models.plans.templates import PermutationGroup


class Gather:
    """Forward pre-hook: input channel i of the layer is channel ``order[i]`` of what it is given."""

    def __init__(self, order: Tensor, axis: int) -> None:
        self.order, self.axis = order, axis

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the channels of the layer's input reordered."""
        inputs = layer_input(args, kwargs)
        moved = inputs.index_select(self.axis, self.order.to(inputs.device))
        swapped = [moved if value is inputs else value for value in args]
        return tuple(swapped), {key: moved if value is inputs else value for key, value in kwargs.items()}


def gather(layer: nn.Module, order: Tensor) -> None:
    """Let a Linear or Conv2d read its channels in ``order``, on top of the order in which it reads them already."""
    earlier = _remove(layer)
    order = order if earlier is None else earlier[order]
    if not torch.equal(order, torch.arange(len(order))):
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        layer.register_forward_pre_hook(Gather(order, axis), prepend=True, with_kwargs=True)


def ungather(model: nn.Module) -> None:
    """Let every layer read its channels as they come; weights stay."""
    for module in model.modules():
        _remove(module)


def at_run_time(model: nn.Module, taken: Collection[str]) -> tuple[PermutationGroup, ...]:
    """A group for each Linear and ungrouped Conv2d that is not ``taken`` and whose weight is a parameter."""
    return tuple(
        PermutationGroup((name,), (), gathered=True)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and getattr(module, "groups", 1) == 1
        and plain(module)
        and name not in taken
    )


def _remove(layer: nn.Module) -> Tensor | None:
    """Take the layer's order off, and return it."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, Gather):
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)
            return hook.order
    return None
