"""Match the templates, and plain nn.Sequential chains, against a model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import nn

from mpcore.models.plans.templates import TEMPLATES, PermutationGroup, Producer, Template

CHANNELWISE = (nn.BatchNorm2d, nn.BatchNorm1d, nn.PReLU)
TRANSPARENT = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.ELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)


def find(model: nn.Module) -> tuple[PermutationGroup, ...]:
    """Permutation groups of ``model`` in module order; each consumer appears in one group."""
    modules = dict(model.named_modules())
    groups: list[PermutationGroup] = []
    taken: set[str] = set()
    for name, module in modules.items():
        candidates: Iterator[PermutationGroup] = chain(
            (group for template in TEMPLATES if (group := _match(template, name, modules))), _chains(name, module)
        )
        for group in candidates:
            if taken.isdisjoint(group.consumers):
                taken.update(group.consumers)
                groups.append(group)
    return tuple(groups)


def _match(template: Template, block: str, modules: dict[str, nn.Module]) -> PermutationGroup | None:
    """The group of ``template`` in ``block``, or None where a name is missing or a width does not fit."""
    prefix = f"{block}." if block else ""

    def present(names: tuple[str, ...]) -> list[str] | None:
        found = [(prefix + name.rstrip("?"), name.endswith("?")) for name in names]
        if any(name not in modules and not optional for name, optional in found):
            return None
        return [name for name, _ in found if name in modules and not isinstance(modules[name], nn.Identity)]

    if any(prefix + name in modules or _attribute(modules, prefix + name) for name in template.absent):
        return None
    consumers, producers = present(template.consumers), present(template.producers)
    channelwise = present(template.channelwise)
    if not consumers or not producers or channelwise is None:
        return None
    width = _inputs(modules[consumers[0]])
    index, parts = template.producer_part
    if width is None or any(_inputs(modules[name]) != width for name in consumers):
        return None
    if any(_outputs(modules[name]) not in (width * parts, width) for name in producers):
        return None
    starts = [index * width if _outputs(modules[name]) == width * parts else 0 for name in producers]
    blocks = _attribute(modules, prefix + template.heads) if template.heads else 1
    if blocks is None or width % blocks:
        return None
    pairs = tuple(Producer(name, start) for name, start in zip(producers, starts, strict=True))
    return PermutationGroup(tuple(consumers), pairs, tuple(channelwise), blocks)


def _chains(name: str, module: nn.Module) -> Iterator[PermutationGroup]:
    """Layers that follow one another in an nn.Sequential with only channel-wise modules between."""
    if not isinstance(module, nn.Sequential):
        return
    prefix = f"{name}." if name else ""
    producer, between = "", list[str]()
    for key, child in module.named_children():
        if isinstance(child, (nn.Linear, nn.Conv2d)) and getattr(child, "groups", 1) == 1:
            width = _inputs(child)
            if producer and width is not None and _outputs(module.get_submodule(producer)) == width:
                yield PermutationGroup((prefix + key,), (Producer(prefix + producer),), tuple(between))
            producer, between = key, []
        elif isinstance(child, CHANNELWISE) or (isinstance(child, nn.Conv2d) and _depthwise(child)):
            between.append(prefix + key)
        elif not isinstance(child, TRANSPARENT):
            producer, between = "", []


def _depthwise(module: nn.Conv2d) -> bool:
    return module.groups == module.in_channels == module.out_channels


def plain(module: nn.Module) -> bool:
    """Whether the weight is a parameter of the module, not computed from others before every call."""
    return "weight" in module._parameters


def _inputs(module: nn.Module) -> int | None:
    if not plain(module):
        return None
    if isinstance(module, nn.Conv2d):
        return module.in_channels if module.groups == 1 else None
    return module.in_features if isinstance(module, nn.Linear) else None


def _outputs(module: nn.Module) -> int | None:
    if not plain(module):
        return None
    if isinstance(module, nn.Conv2d):
        return module.out_channels if module.groups == 1 else None
    return module.out_features if isinstance(module, nn.Linear) else None


def _attribute(modules: dict[str, nn.Module], path: str) -> int | None:
    owner, _, attribute = path.rpartition(".")
    value = getattr(modules.get(owner), attribute, None)
    return value if isinstance(value, int) else None
