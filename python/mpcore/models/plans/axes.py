"""Which axes of an exported graph's tensors must move together, and which must stay where they are.

Every axis of every tensor, parameters included, belongs to a class; :meth:`Axes.tie` merges two.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

Key = tuple[Node, int]


def shape(node: Node) -> tuple[int, ...]:
    """Sizes of a node's tensor; empty for a scalar or for several tensors."""
    return tuple(map(int, getattr(node.meta.get("val"), "shape", ())))


class Axes:
    """Union-find over (node, axis): which axes move together, and why some may not move."""

    def __init__(self) -> None:
        self._parent: dict[Key, Key] = {}
        self._reason: dict[Key, str] = {}
        self._stream: set[Key] = set()

    def root(self, key: Key) -> Key:
        """The representative of an axis's class; a negative axis counts from the end."""
        node, axis = key
        key = (node, axis % len(shape(node)))
        while (parent := self._parent.setdefault(key, key)) != key:
            self._parent[key] = key = self._parent[parent]
        return key

    def tie(self, first: Key, second: Key) -> None:
        """These two axes move together or not at all."""
        kept, other = self.root(first), self.root(second)
        if kept == other:
            return
        self._parent[other] = kept
        if reason := self._reason.pop(other, ""):
            self._reason.setdefault(kept, reason)
        if other in self._stream:
            self._stream.add(kept)

    def pin(self, key: Key, reason: str) -> None:
        """This axis stays as it is."""
        self._reason.setdefault(self.root(key), reason)

    def pin_all(self, nodes: Iterable[Node], reason: str) -> None:
        """Every axis of these tensors stays as it is."""
        for node in nodes:
            for axis in range(len(shape(node))):
                self.pin((node, axis), reason)

    def reason(self, key: Key) -> str:
        """Why the class of an axis is pinned; empty if it is free."""
        return self._reason.get(self.root(key), "")

    def mark_stream(self, key: Key) -> None:
        """Two branches are added along this axis."""
        self._stream.add(self.root(key))

    def is_stream(self, key: Key) -> bool:
        """Whether the outputs of two branches are added along this axis (a residual stream)."""
        return self.root(key) in self._stream

    def classes(self) -> dict[Key, list[Key]]:
        """Root -> members."""
        members: dict[Key, list[Key]] = {}
        for key in list(self._parent):
            members.setdefault(self.root(key), []).append(key)
        return members
