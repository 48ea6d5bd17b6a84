"""Training batches whose order and augmentation are a function of seed, epoch and position alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

Augment = Callable[[Tensor, Generator], Tensor]


class ShuffledBatches:
    """Tensors cut into batches, in another order every epoch.

    Batch k of epoch e depends on ``(seed, e, k)`` and on nothing that ran before, so an interrupted training takes up
    the very same batches. The last batch holds what is left.

    Args:
        inputs: (n, ...).
        targets: (n,) class numbers, or None.
        batch_size: samples per batch.
        seed: of the order and the augmentation.
        augment: ``augment(inputs, generator)`` returns the inputs to train on; random numbers come from ``generator``.

    Example:
        >>> batches = ShuffledBatches(torch.arange(5.0)[:, None], batch_size=2)
        >>> len(batches), sorted(torch.cat(list(batches)).flatten().tolist())
        (3, [0.0, 1.0, 2.0, 3.0, 4.0])
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        *,
        batch_size: int = 32,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if len(inputs) == 0 or batch_size < 1:
            raise ValueError(f"batches: {len(inputs)} samples in batches of {batch_size}; wanted at least 1 of each")
        if targets is not None and len(targets) != len(inputs):
            raise ValueError(f"batches: {len(inputs)} inputs and {len(targets)} targets")
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        order = torch.randperm(len(self.inputs), generator=_generator(self.seed, epoch, 0))
        for index, chosen in enumerate(torch.split(order, self.batch_size)):
            inputs = self.inputs[chosen]
            if self.augment is not None:
                inputs = self.augment(inputs, _generator(self.seed, epoch, index + 1))
            yield inputs if self.targets is None else (inputs, self.targets[chosen])


def _generator(seed: int, epoch: int, stream: int) -> Generator:
    """Independent streams: the three numbers are mixed by NumPy's SeedSequence."""
    return Generator().manual_seed(mix(seed, epoch, stream))


def mix(*numbers: int) -> int:
    """One 63-bit seed out of several non-negative integers, by NumPy's SeedSequence."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
