"""The mask of one layer, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcore.checkpoint import widened
from mpcore.masks import Mask, nm_mask
from mpcore.models.score import score
from mpcore.records import Pattern, PlannedLayer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StoredMoments:
    """Mean and mean square of a layer's inputs, (columns,) float64, as calibration.safetensors holds them."""

    mean: Array
    square: Array

    @classmethod
    def of(cls, tensors: Mapping[str, Array], layer: str, columns: int) -> StoredMoments:
        """The moments of ``layer`` among ``tensors``.

        Raises:
            ValueError: if they are not there, of another length, or not finite and >= 0.
        """
        parts = [f"{layer}.mean", f"{layer}.square"]
        if missing := [part for part in parts if part not in tensors]:
            raise ValueError(f"layer {layer}: the statistics hold no {missing[0]!r}")
        mean, square = (tensors[part].astype(np.float64) for part in parts)
        for part, value in zip(parts, (mean, square), strict=True):
            if value.shape != (columns,):
                raise ValueError(f"layer {layer}: {part!r} has shape {value.shape}, wanted ({columns},)")
        if not np.isfinite(mean).all() or not np.isfinite(square).all() or square.min() < 0:
            raise ValueError(f"layer {layer}: its statistics hold NaN, infinity or a negative mean square")
        return cls(mean, square)


class LayerMasker:
    """Masks the rows of one layer in turn and keeps the sums its record needs.

    Scores are those of :func:`mpcore.models.score.score`. Errors are of H = diag(E x^2), or of H = 1 without moments.
    """

    def __init__(self, layer: str, dtype: str, pattern: Pattern, kind: str, moments: StoredMoments | None) -> None:
        self.layer, self.dtype, self.pattern, self.kind, self.moments = layer, dtype, pattern, kind, moments
        self._weight = None if moments is None else moments.square.astype(np.float32)
        self._rows = self._kept = 0
        self._score_kept = self._score = self._energy_kept = self._energy = 0.0

    def mask(self, stored: Array) -> Mask:
        """The mask (rows, columns) of the next rows, given as stored.

        Raises:
            ValueError: naming the layer and entry, for NaN, infinity or scores beyond float32.
        """
        values = widened(stored, self.dtype)
        values = values.astype(np.float32) if values.dtype == np.float16 else values
        scores = score(values, self.moments, self.kind)
        try:
            mask = nm_mask(scores, self.pattern)
        except ValueError as error:
            raise ValueError(f"layer {self.layer}, rows from {self._rows}: {error}") from None
        energy = np.square(values) if self._weight is None else np.square(values) * self._weight
        self._rows += len(stored)
        self._kept += int(np.count_nonzero(mask))
        self._score += float(scores.sum(dtype=np.float64))
        self._score_kept += float((scores * mask).sum(dtype=np.float64))
        self._energy += float(energy.sum(dtype=np.float64))
        self._energy_kept += float((energy * mask).sum(dtype=np.float64))
        return mask

    def planned(self, shape: tuple[int, ...]) -> PlannedLayer:
        """The record of the layer once all its rows are masked."""
        share = self._score_kept / self._score if self._score else 1.0
        error = max(0.0, 1.0 - self._energy_kept / self._energy) if self._energy else 0.0
        return PlannedLayer(self.layer, self.pattern, shape, self._kept, min(1.0, share), error, error)
