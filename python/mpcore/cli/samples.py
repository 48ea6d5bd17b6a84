"""The data that a command is given, tried on its model before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mpcore.models.data import Batches


def load_samples(spec: str, network: nn.Module, **options: Any) -> Batches:
    """:func:`mpcore.models.data.load_data`, and a ValueError if ``network`` does not take the first sample."""
    from mpcore.models.batches import split
    from mpcore.models.data import load_data
    from mpcore.models.evaluate import check_takes

    batches = load_data(spec, network, **options)
    check_takes(network, split(replace(batches, batch_size=1)[0])[0], spec)
    return batches
