"""The global random generators of torch, NumPy and Python: lend, seed, capture, restore."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpcore.models.shuffle import mix


@contextmanager
def lend_generators(device: torch.device) -> Iterator[None]:
    """Let the block seed the global generators as it likes; the caller finds them as they were."""
    tensors, words = capture(device)
    try:
        yield
    finally:
        restore(tensors, words, device)


def seed_generators(*numbers: int) -> None:
    """Seed every global generator with a mix of non-negative ``numbers``."""
    value = mix(*numbers)
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def capture(device: torch.device) -> tuple[dict[str, Tensor], str]:
    """The state of every global generator, as tensors and one JSON document."""
    numpy_state: Any = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(numpy_state[1].astype(np.int64))}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, json.dumps({"numpy": numpy_state[2:], "python": random.getstate()})


def restore(tensors: Mapping[str, Tensor], words: str, device: torch.device) -> None:
    """Put back what :func:`capture` returned."""
    found = json.loads(words)
    version, numbers, gauss = found["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), *found["numpy"]))
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)
