"""Checkpoints larger than memory: pruned shard by shard, with no model class at hand.

A layer is known by the name of its parameter; scores need no data, or the input moments that an earlier run stored.
"""

from __future__ import annotations

from mpcore.stream.inventory import inventory_of as inventory_of
from mpcore.stream.run import prune_checkpoint as prune_checkpoint
