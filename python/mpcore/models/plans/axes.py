"""Which axes of an exported graph's tensors must move together, and which must stay where they are.

Every axis of every tensor, parameters included, is a sequence of runs of positions. An axis begins as one run; what
concatenates, splits or slices it cuts it in several (:meth:`Axes.tie_part`). Runs that move together are one class.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

Key = tuple[Node, int]


def shape(node: Node) -> tuple[int, ...]:
    """Sizes of a node's tensor; empty for a scalar or for several tensors."""
    return tuple(map(int, getattr(node.meta.get("val"), "shape", ())))


class Run:
    """Consecutive positions that can be reordered together: a union-find class that may be cut in two.

    ``reason``: why it may not move; empty if it may. ``stream``: two branches are added along it (a residual stream).
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.reason = ""
        self.stream = False
        self._parent: Run | None = None
        self._halves: tuple[Run, Run] | None = None

    def root(self) -> Run:
        """The representative of its class."""
        run = self
        while run._parent is not None:
            if run._parent._parent is not None:
                run._parent = run._parent._parent
            run = run._parent
        return run

    def pieces(self) -> list[Run]:
        """The runs it was cut into, from left to right; itself if it was not."""
        run = self.root()
        return [run] if run._halves is None else [piece for half in run._halves for piece in half.pieces()]

    def cut(self, place: int) -> None:
        """Let the class consist of its first ``place`` positions and of the others; each moves by itself."""
        left, right = Run(place), Run(self.size - place)
        for half in (left, right):
            half.reason, half.stream = self.reason, self.stream
        self._halves = left, right

    def join(self, other: Run) -> None:
        """The two classes move together or not at all."""
        if other is not self:
            other._parent = self
            self.reason = self.reason or other.reason
            self.stream |= other.stream


class Axes:
    """(node, axis) -> its runs; a negative axis counts from the end."""

    def __init__(self) -> None:
        self._runs: dict[Key, list[Run]] = {}

    def runs(self, key: Key) -> list[Run]:
        """The classes an axis consists of, from left to right."""
        node, axis = key
        key = (node, axis % len(shape(node)))
        known = self._runs.get(key) or [Run(shape(node)[key[1]])]
        self._runs[key] = pieces = [piece for run in known for piece in run.pieces()]
        return pieces

    def tie(self, first: Key, second: Key) -> None:
        """These two axes move together or not at all."""
        self.tie_part(first, 0, second)

    def tie_part(self, whole: Key, start: int, part: Key) -> None:
        """The positions of ``whole`` from ``start`` on are those of ``part``: they move together or not at all."""
        size = sum(run.size for run in self.runs(part))
        self._cut(whole, start)
        self._cut(whole, start + size)
        done = 0
        while done < size:
            left, right = self._begins_at(whole, start + done), self._begins_at(part, done)
            if left.size == right.size:
                left.join(right)
                done += left.size
            else:
                max(left, right, key=lambda run: run.size).cut(min(left.size, right.size))

    def pin(self, key: Key, reason: str) -> None:
        """This axis stays as it is."""
        for run in self.runs(key):
            run.reason = run.reason or reason

    def pin_all(self, nodes: Iterable[Node], reason: str) -> None:
        """Every axis of these tensors stays as it is."""
        for node in nodes:
            for axis in range(len(shape(node))):
                self.pin((node, axis), reason)

    def mark_stream(self, key: Key) -> None:
        """Two branches are added along this axis."""
        for run in self.runs(key):
            run.stream = True

    def _cut(self, key: Key, place: int) -> None:
        """Let a run of the axis end before ``place``."""
        for run in self.runs(key):
            if 0 < place < run.size:
                run.cut(place)
                return
            place -= run.size

    def _begins_at(self, key: Key, place: int) -> Run:
        for run in self.runs(key):
            if place == 0:
                return run
            place -= run.size
        raise IndexError(f"no run of {key} begins at {place}")
