"""Apply an order of channels to the weights around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mpcore.models.apply import layer_of
from mpcore.models.plans.templates import PermutationGroup


@torch.no_grad()
def fold(model: nn.Module, group: PermutationGroup, order: Sequence[int]) -> None:
    """Reorder the channels of ``group`` in place: new channel i is old channel ``order[i]``.

    Raises:
        ValueError: if ``order`` is not a permutation of the group's channels, or leaves a block of it.
    """
    channels = layer_of(model, group.consumers[0]).weight.shape[1]
    index = torch.as_tensor(order, dtype=torch.long)
    if not torch.equal(index.sort().values, torch.arange(channels)):
        raise ValueError(f"{group.consumers[0]}: order is not a permutation of its {channels} input channels")
    run = channels // group.blocks
    if not torch.equal(index // run, torch.arange(channels) // run):
        raise ValueError(f"{group.consumers[0]}: order moves a channel out of its run of {run}")
    for name in group.consumers:
        weight = layer_of(model, name).weight
        weight.copy_(weight.index_select(1, index.to(weight.device)))
    for producer in group.producers:
        module = model.get_submodule(producer.name)
        for tensor in module.parameters(recurse=False):
            part = tensor[producer.start : producer.start + channels]
            part.copy_(part.index_select(0, index.to(tensor.device)))
    for name in group.channelwise:
        between = model.get_submodule(name)
        for values in (*between.parameters(), *between.buffers()):
            if values.ndim and values.shape[0] == channels:
                values.copy_(values.index_select(0, index.to(values.device)))
