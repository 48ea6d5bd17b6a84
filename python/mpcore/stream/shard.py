"""One file of a checkpoint: read once, masked block by block, written with the same header."""

from __future__ import annotations

import hashlib
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mpcore.checkpoint import Weights, header_for, header_of, open_weights
from mpcore.records import Pattern, PlannedLayer, Record, atomic
from mpcore.stream.masking import LayerMasker, StoredMoments

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ShardJob:
    """What to do with one file. Travels to other processes, which must see the same folders."""

    source: Path
    out: Path
    masks: Path
    record: Path
    patterns: dict[str, Pattern]  # layer -> pattern, of the layers in this file
    score: str
    moments: Path | None
    size: int  # bytes


@dataclass(frozen=True)
class Shard(Record):
    """What became of one file: SHA-256 of the source, the pruned file and its masks (None: none), and its layers."""

    kind: ClassVar[str] = "shard"
    source: str
    pruned: str
    masks: str | None
    layers: tuple[PlannedLayer, ...]


class _Output:
    """A file that is written whole or not at all, and the SHA-256 of what was written."""

    def __init__(self, path: Path, header: bytes, stack: ExitStack) -> None:
        self.file = stack.enter_context(stack.enter_context(atomic(path)).open("wb"))
        self.seal = hashlib.sha256()
        self.write(header)

    def write(self, data: Any) -> None:
        self.file.write(data)
        self.seal.update(data)


def prune_shard(job: ShardJob, *, stop: threading.Event | None = None) -> Shard:
    """Write the pruned copy of ``job.source``, its masks, and then the record that vouches for both.

    The copy has the header of the source, byte for byte: same names, element types and places; tensors that are not
    pruned are the same bytes. Masks are bits: ``LAYER`` -> U8 (rows, ceil(columns / 8)), lowest bit first, 1 = kept.
    Memory is a few blocks of rows, however large the tensors are. Once ``stop`` is set the next block ends the work.

    Raises:
        ValueError: naming file and layer, for NaN or infinity in a weight to prune, or moments that do not fit.
    """
    weights = open_weights(job.source)
    try:
        shard = _write(job, weights, stop or threading.Event())
    except ValueError as error:
        raise ValueError(f"{job.source}: {error}") from None
    shard.write(job.record)
    return shard


def _write(job: ShardJob, weights: Weights, stop: threading.Event) -> Shard:
    moments = {} if job.moments is None else open_weights(job.moments)
    header = header_of(job.source)
    read, layers = hashlib.sha256(header), []
    with ExitStack() as stack:
        out = _Output(job.out, header, stack)
        masks = _Output(job.masks, _mask_header(job, weights), stack) if job.patterns else None
        for name in weights.files().get(job.source, ()):
            layer, pattern = name.removesuffix(".weight"), _pattern(job, name)
            shape, dtype = weights.shapes()[name], weights.dtypes()[name]
            masker = None
            if pattern is not None:
                stored = None if job.moments is None else StoredMoments.of(moments, layer, shape[1])
                masker = LayerMasker(layer, dtype, pattern, job.score, stored)
            for block in weights.blocks(name):
                if stop.is_set():
                    raise KeyboardInterrupt
                read.update(block.data)
                if masker is not None and masks is not None:
                    mask = masker.mask(block)
                    bits = block.view(f"u{block.itemsize}")
                    np.multiply(bits, mask, out=bits)  # no bit of +0.0 is set
                    masks.write(np.packbits(mask, axis=1, bitorder="little").data)
                out.write(block.data)
            if masker is not None:
                layers.append(masker.planned(shape))
    mask_seal = None if masks is None else masks.seal.hexdigest()
    return Shard(read.hexdigest(), out.seal.hexdigest(), mask_seal, tuple(layers))


def _pattern(job: ShardJob, name: str) -> Pattern | None:
    return job.patterns.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


def _mask_header(job: ShardJob, weights: Weights) -> bytes:
    shapes = weights.shapes()
    names = [name for name in weights.files()[job.source] if _pattern(job, name)]
    return header_for(
        {name.removesuffix(".weight"): ("U8", (shapes[name][0], -(-shapes[name][1] // 8))) for name in names}
    )
