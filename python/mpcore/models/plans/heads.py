"""An order for each head of attention, where a trace proves that one order may serve them all."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from mpcore.models.apply import layer_of
from mpcore.models.plans.templates import PermutationGroup, Producer, TensorAxis


def by_head(model: nn.Module, group: PermutationGroup) -> tuple[PermutationGroup, ...]:
    """Guesses at groups whose channels are those of all heads and whose order is one per head; to be checked.

    ``group`` has the same channels at several places of each tensor, once per head or several times: queries, keys
    and values of one layer, or the queries that share a head of keys. Either all of one head stand together, or all
    heads of one kind; both are guessed. Empty if there is no head, or no step from one to the next.
    """
    places: dict[TensorAxis, list[int]] = {}
    members = [TensorAxis(name, 1, start) for name, start, _ in group.runs()]
    members += [TensorAxis(producer.name, 0, producer.start) for producer in group.producers]
    for member in (*members, *group.tensors):
        places.setdefault(replace(member, start=0), []).append(member.start)
    heads = math.gcd(*map(len, places.values()))
    guesses = [_guess(model, group, places, heads, together) for together in (True, False)] if heads > 1 else []
    return tuple(dict.fromkeys(guess for guess in guesses if guess is not None))


def _guess(
    model: nn.Module, group: PermutationGroup, places: dict[TensorAxis, list[int]], heads: int, together: bool
) -> PermutationGroup | None:
    """``together``: what belongs to one head stands side by side."""
    moved = list[TensorAxis]()
    for member, starts in places.items():
        copies = len(starts) // heads
        for copy in range(copies):
            of_heads = sorted(starts)[copy::copies] if together else sorted(starts)[copy * heads : (copy + 1) * heads]
            step = of_heads[1] - of_heads[0]
            if of_heads != list(range(of_heads[0], of_heads[0] + heads * step, step)):
                return None
            moved.append(replace(member, start=of_heads[0], step=step))
    consumers, producers = set(group.consumers), {producer.name for producer in group.producers}
    readers = [member for member in moved if member.name in consumers and member.axis == 1]
    channels = heads * group.channels
    whole = all(
        (reader.start, reader.step, layer_of(model, reader.name).weight.shape[1]) == (0, group.channels, channels)
        for reader in readers
    )
    return PermutationGroup(
        tuple(reader.name for reader in readers),
        tuple(Producer(m.name, m.start, m.step) for m in moved if m.name in producers and m.axis == 0),
        blocks=heads,
        tensors=tuple(m for m in moved if m.name not in consumers | producers),
        starts=() if whole else tuple(reader.start for reader in readers),
        steps=() if whole else tuple(reader.step for reader in readers),
        channels=0 if whole else channels,
    )
