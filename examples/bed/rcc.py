"""Reader of Qt binary resource containers (``.rcc``), the format that ``rcc --binary`` writes.

A container is a header, a tree of nodes, a table of names and a table of data, in an order of the writer's choice. All
numbers are big endian::

    header  magic "qres" · version u32 · offset of the tree u32 · of the data u32 · of the names u32 ·
              flags u32 (version 3)
    node    offset of its name u32 · flags u16 ·
              folder: number of children u32 · index of the first child u32
              file:   country u16 · language u16 · offset of its data u32
            modification time u64 (version 2 and later)
    name    length u16 · hash u32 · UTF-16 text
    data    size u32 · bytes; of a zlib entry the first four bytes are the unpacked size u32

Node 0 is the root. Children stand together, after their parent.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPRESSED, FOLDER, COMPRESSED_ZSTD = 1, 2, 4


def read_rcc(path: str | Path, *, suffixes: tuple[str, ...] = ("",)) -> Iterator[tuple[str, bytes]]:
    """The files of a container as (path inside, content), in the container's own order.

    Args:
        path: the container.
        suffixes: only files whose path ends so, compared in lower case; others are not unpacked.

    Raises:
        ValueError: if the file is no container, is damaged, or a wanted entry is compressed with zstd.

    Example:
        >>> photos = dict(read_rcc("erase.rcc", suffixes=(".webp",)))  # doctest: +SKIP
    """
    container = _Container.parse(Path(path).read_bytes(), str(path))
    for name, node in container.files():
        if name.lower().endswith(suffixes):
            yield name, container.content(name, node)


@dataclass(frozen=True)
class _Container:
    data: bytes
    source: str
    version: int
    tree: int
    contents: int
    names: int

    @classmethod
    def parse(cls, data: bytes, source: str) -> _Container:
        if len(data) < 20 or data[:4] != b"qres":
            raise ValueError(f"{source}: not a Qt resource container (no 'qres' at its start)")
        version, tree, contents, names = struct.unpack_from(">4I", data, 4)
        if not 1 <= version <= 3:
            raise ValueError(f"{source}: version {version} of the container format, known are 1 to 3")
        return cls(data, source, version, tree, contents, names)

    def unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(layout, self.data, offset)
        except struct.error:
            raise ValueError(
                f"{self.source}: damaged, offset {offset} lies outside its {len(self.data)} bytes"
            ) from None

    def cut(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise ValueError(f"{self.source}: damaged, {size} bytes at {offset} of {len(self.data)}")
        return self.data[offset : offset + size]

    def node(self, index: int) -> int:
        """Offset of a node."""
        return self.tree + index * (14 if self.version == 1 else 22)

    def name(self, node: int) -> str:
        offset = self.names + self.unpack(">I", node)[0]
        return self.cut(offset + 6, 2 * self.unpack(">H", offset)[0]).decode("utf-16-be")

    def files(self) -> Iterator[tuple[str, int]]:
        """(path, offset of the node) of every file, depth first."""
        pending = [(0, "")]
        while pending:
            index, path = pending.pop()
            node = self.node(index)
            if not self.unpack(">H", node + 4)[0] & FOLDER:
                yield path, node
                continue
            count, first = self.unpack(">II", node + 6)
            if count and first <= index:  # also what makes the walk end
                raise ValueError(f"{self.source}: damaged, children of node {index} start at node {first}")
            self.cut(self.node(first), self.node(count) - self.tree)
            for child in reversed(range(first, first + count)):
                pending.append((child, f"{path}/{self.name(self.node(child))}"))

    def content(self, path: str, node: int) -> bytes:
        flags, (offset,) = self.unpack(">H", node + 4)[0], self.unpack(">I", node + 10)
        offset += self.contents
        raw = self.cut(offset + 4, self.unpack(">I", offset)[0])
        if flags & COMPRESSED_ZSTD:
            raise ValueError(f"{self.source}: {path} is compressed with zstd, which this reader does not know")
        if not flags & COMPRESSED:
            return raw
        try:
            return zlib.decompress(raw[4:])
        except zlib.error as error:
            raise ValueError(f"{self.source}: {path} is damaged ({error})") from None
