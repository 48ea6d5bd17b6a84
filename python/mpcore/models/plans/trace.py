"""Permutation groups of layers that no template knows, proved on the exported graph of the network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from mpcore.models.batches import call, tensors_of
from mpcore.models.plans.axes import Axes, Run, shape
from mpcore.models.plans.rules import visit
from mpcore.models.plans.templates import PermutationGroup, Producer, TensorAxis


@dataclass(frozen=True)
class Traced:
    """What :func:`trace` proved. ``streams`` are groups that span a residual stream; ``refused``: layer -> why not."""

    groups: tuple[PermutationGroup, ...]
    streams: tuple[PermutationGroup, ...]
    refused: dict[str, str]


def trace(model: nn.Module, example: Any) -> Traced:
    """Find the input channels of Linear and Conv2d layers that can be reordered for free.

    The network is exported (``torch.export``) with its parameters as inputs of the graph. Axes that move together are
    merged operation by operation, run by run where they are concatenated, split or sliced; a group is a class of runs
    that nothing pins. What the rules do not cover is refused: an unknown operation, channels that are indexed or
    reshaped, the network's own inputs and outputs.

    Args:
        model: in evaluation mode; it is not changed.
        example: a tensor, or a dict of keyword arguments, that the model accepts.

    Returns:
        Groups in the order in which the forward pass meets their layers.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> found = trace(net, torch.zeros(2, 3))
        >>> [group.consumers for group in found.groups], found.refused
        ([('2',)], {'0': 'an input of the network'})
    """
    layers = {
        f"{name}.weight": name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    try:
        axes, tensors = _tie_axes(model, _export(model, example))
    except Exception as error:  # whatever the model's own code or the exporter raises, it is a reason to refuse
        told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        reason = f"torch.export cannot follow the network ({told})"
        return Traced((), (), dict.fromkeys(layers.values(), reason))
    members = _members(axes, tensors)
    groups, streams, refused = list[PermutationGroup](), list[PermutationGroup](), dict[str, str]()
    seen: set[Run] = set()
    for node, name in tensors.items():
        if name not in layers or len(shape(node)) < 2:
            continue
        runs = axes.runs((node, 1))
        if getattr(model.get_submodule(layers[name]), "groups", 1) > 1:
            refused[layers[name]] = "a grouped convolution"
        elif not (free := [run for run in runs if not run.reason]):
            refused[layers[name]] = runs[0].reason
        elif not node.users:
            refused[layers[name]] = "the forward pass does not read its weight"
        else:
            for run in free:
                if run not in seen:
                    seen.add(run)
                    (streams if run.stream else groups).append(_group(model, layers, run.size, members[run]))
    return Traced(tuple(groups), tuple(streams), refused)


def _members(axes: Axes, tensors: dict[Node, str]) -> dict[Run, list[TensorAxis]]:
    """Run -> where parameters and stored buffers have it."""
    members: dict[Run, list[TensorAxis]] = {}
    for node, name in tensors.items():
        for axis in range(len(shape(node))):
            start = 0
            for run in axes.runs((node, axis)):
                members.setdefault(run, []).append(TensorAxis(name, axis, start))
                start += run.size
    return members


class _Answer(nn.Module):
    """The tensors that a model returns, without the state, such as a cache, that torch cannot export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> list[Tensor]:
        return tensors_of(call(self.model, inputs))


def _export(model: nn.Module, example: Any) -> ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about attributes that the model's own code sets
        return torch.export.export(_Answer(model), (example,), strict=False)


def _tie_axes(model: nn.Module, program: ExportedProgram) -> tuple[Axes, dict[Node, str]]:
    """The classes of axes, and graph input -> name in the state dict of parameters and stored buffers."""
    signature, axes, tensors = program.graph_signature, Axes(), dict[Node, str]()
    holders: dict[int, Node] = {}
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = stored.get(node.name, "").removeprefix("model.")
            if not name:
                constant = node.name not in signature.user_inputs
                axes.pin_all([node], "a constant" if constant else "an input of the network")
            elif stored[node.name] in signature.non_persistent_buffers:
                axes.pin_all([node], "a buffer that is not stored")
            else:
                tensors[node] = name
                owner, _, attribute = name.rpartition(".")
                first = holders.setdefault(id(getattr(model.get_submodule(owner), attribute)), node)
                for axis in range(len(shape(node))):
                    axes.tie((first, axis), (node, axis))  # one tensor under two names
        elif node.op == "output":
            axes.pin_all(node.all_input_nodes, "an output of the network")
        else:
            visit(axes, node)
    return axes, tensors


def _group(model: nn.Module, layers: dict[str, str], channels: int, members: list[TensorAxis]) -> PermutationGroup:
    """Layers whose inputs, and whose outputs, are the channels; every other tensor by name, axis and start."""
    left = dict.fromkeys(members)
    consumers, producers = [], []
    for member in members:
        if member.name not in layers:
            continue
        if member.axis == 1:
            consumers.append(member)
            del left[member]
            continue
        module = model.get_submodule(layers[member.name])
        own = [
            replace(member, name=f"{layers[member.name]}.{name}") for name, _ in module.named_parameters(recurse=False)
        ]
        if getattr(module, "groups", 1) == 1 and all(key in left for key in own):
            producers.append(Producer(layers[member.name], member.start))
            for key in own:
                del left[key]
    whole = all(model.get_parameter(consumer.name).shape[1] == channels for consumer in consumers)
    return PermutationGroup(
        tuple(layers[consumer.name] for consumer in consumers),
        tuple(producers),
        tensors=tuple(left),
        starts=() if whole else tuple(consumer.start for consumer in consumers),
        channels=0 if whole else channels,
    )
