"""Apply an order of channels to the weights around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mpcore.models.apply import layer_of
from mpcore.models.plans.gather import gather
from mpcore.models.plans.templates import PermutationGroup


def channels_of(model: nn.Module, group: PermutationGroup) -> int:
    """How many channels an order of the group has."""
    return group.channels or layer_of(model, group.consumers[0]).weight.shape[1]


def places_of(group: PermutationGroup, channels: int, start: int, step: int) -> torch.Tensor:
    """The positions of the group's channels in an axis where they begin at ``start``, their blocks ``step`` apart."""
    run = channels // group.blocks
    return (start + (step or run) * torch.arange(group.blocks)[:, None] + torch.arange(run)).flatten()


@torch.no_grad()
def fold(model: nn.Module, group: PermutationGroup, order: Sequence[int]) -> None:
    """Reorder the channels of ``group`` in place: new channel i is old channel ``order[i]``.

    Raises:
        ValueError: if ``order`` is not a permutation of the group's channels, or leaves a block of it.
    """
    channels = channels_of(model, group)
    index = torch.as_tensor(order, dtype=torch.long)
    if not torch.equal(index.sort().values, torch.arange(channels)):
        raise ValueError(f"{group.consumers[0]}: order is not a permutation of {channels} input channels")
    run = channels // group.blocks
    if not torch.equal(index // run, torch.arange(channels) // run):
        raise ValueError(f"{group.consumers[0]}: order moves a channel out of its run of {run}")
    for tensor, axis, start, step in set(_moves(model, group, channels)):
        places = places_of(group, channels, start, step).to(tensor.device)
        tensor.index_copy_(axis, places, tensor.index_select(axis, places[index.to(tensor.device)]))
    if group.gathered:
        for name in group.consumers:
            gather(layer_of(model, name), index)


def _moves(model: nn.Module, group: PermutationGroup, channels: int) -> Iterator[tuple[torch.Tensor, int, int, int]]:
    """(tensor, axis, start, step): wherever the channels are; a tensor that two modules share comes twice."""
    for name, start, step in group.runs():
        yield layer_of(model, name).weight, 1, start, step
    for producer in group.producers:
        for tensor in model.get_submodule(producer.name).parameters(recurse=False):
            yield tensor, 0, producer.start, producer.step
    for name in group.channelwise:
        between = model.get_submodule(name)
        for values in (*between.parameters(), *between.buffers()):
            if values.ndim and values.shape[0] == channels:
                yield values, 0, 0, 0
    for other in group.tensors:
        owner, _, attribute = other.name.rpartition(".")
        yield getattr(model.get_submodule(owner), attribute), other.axis, other.start, other.step
