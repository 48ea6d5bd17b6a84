"""WebDataset tar shards read at any place.

The webdataset package streams shards, without a length and in an order that cannot be taken up again; so a shard's
headers are read once here, and then any image is one read at its place.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mpcore.models.images import SUFFIXES, Store


class TarShards(Store):
    """WebDataset shards: consecutive members ``KEY.jpg`` (or another image) and ``KEY.cls`` are one sample.

    The label is the number in ``.cls``; where no sample has one, the images have no labels.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        samples = [(shard, *sample) for shard, file in enumerate(self.files) for sample in _tar_samples(file)]
        if not samples:
            raise ValueError(f"{self.files[0]}: holds no images, nor do the {len(self.files) - 1} others")
        self.keys = [key for _, key, _, _, _ in samples]
        self.places = np.array([(shard, offset, length) for shard, _, offset, length, _ in samples], np.int64)
        labels = [label for *_, label in samples]
        self.labels = None
        if any(label is not None for label in labels):
            if None in labels:
                raise ValueError(f"{self.name(labels.index(None))}: no label (.cls); other samples have one")
            self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        """The member, by one seek."""
        shard, offset, length = map(int, self.places[index])
        with self.files[shard].open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def name(self, index: int) -> str:
        """Shard and key."""
        return f"{self.files[self.places[index, 0]]}: sample {self.keys[index]!r}"


def _tar_samples(path: Path) -> Iterator[tuple[str, int, int, int | None]]:
    """Key, offset and length of the image, and label, of every sample of a shard."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = (m for m in archive if m.isfile() and not m.name.rpartition("/")[2].startswith("."))
            for key, parts in groupby(members, lambda member: _key(member.name)[0]):
                yield _tar_sample(archive, key, list(parts), path)
            if not _ends(path, archive.offset):
                raise tarfile.ReadError("it is cut short or damaged")
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a whole, uncompressed tar file ({error})") from None


def _ends(path: Path, offset: int) -> bool:
    """Whether the block of zeros that ends an archive lies at ``offset``; tarfile takes any nonsense for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _tar_sample(archive: Any, key: str, parts: list[Any], path: Path) -> tuple[str, int, int, int | None]:
    images = [member for member in parts if f".{_key(member.name)[1].rpartition('.')[2]}" in SUFFIXES]
    if len(images) != 1:
        held = ", ".join(_key(member.name)[1] for member in parts)
        raise ValueError(f"{path}: sample {key!r} has {len(images)} images (it holds {held}), wanted 1")
    label = next((archive.extractfile(m).read() for m in parts if _key(m.name)[1] == "cls"), None)
    return key, images[0].offset_data, images[0].size, None if label is None else _class(label, path, key)


def _class(label: bytes, path: Path, key: str) -> int:
    text = label.decode("utf-8", "replace").strip()
    if not text.isdecimal():
        raise ValueError(f"{path}: sample {key!r}: its label {text[:40]!r} (.cls) is not a class number from 0")
    return int(text)


def _key(name: str) -> tuple[str, str]:
    """``dir/7.seg.png`` -> ``("dir/7", "seg.png")``: WebDataset divides a name at the first dot after the folders."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()
