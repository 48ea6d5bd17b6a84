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


class _KeptShare:
    """Which share of a sum of terms^power a mask keeps, whatever the scale of the terms; they are >= 0."""

    def __init__(self, power: int) -> None:
        self.power = power
        self._unit = self._kept = self._whole = 0.0

    def add(self, terms: Array, mask: Mask) -> None:
        """Take in more of the terms. Sums are in units of the largest so far."""
        largest = float(terms.max(initial=0.0))
        if largest > self._unit:
            smaller = (self._unit / largest) ** self.power
            self._kept, self._whole, self._unit = self._kept * smaller, self._whole * smaller, largest
        if self._unit:
            parts = (terms.astype(np.float64) / self._unit) ** self.power
            self._whole += float(parts.sum())
            self._kept += float(parts[mask].sum())

    def share(self) -> float:
        """Between 0 and 1; 1 of nothing."""
        return min(1.0, self._kept / self._whole) if self._whole else 1.0


class LayerMasker:
    """Masks the rows of one layer in turn and keeps the sums its record needs.

    Scores are those of :func:`mpcore.models.score.score`. Errors are of H = diag(E x^2), or of H = 1 without moments.
    """

    def __init__(self, layer: str, dtype: str, pattern: Pattern, kind: str, moments: StoredMoments | None) -> None:
        self.layer, self.dtype, self.pattern, self.kind, self.moments = layer, dtype, pattern, kind, moments
        self._norm = np.float64(1) if moments is None else _up_to_one(np.sqrt(moments.square))
        self._rows = self._kept = 0
        self._score, self._energy = _KeptShare(1), _KeptShare(2)

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
        self._rows += len(stored)
        self._kept += int(np.count_nonzero(mask))
        self._score.add(scores, mask)
        self._energy.add(np.abs(values) * self._norm, mask)
        return mask

    def planned(self, shape: tuple[int, ...]) -> PlannedLayer:
        """The record of the layer once all its rows are masked."""
        error = 1.0 - self._energy.share()
        return PlannedLayer(self.layer, self.pattern, shape, self._kept, self._score.share(), error, error)


def _up_to_one(norms: Array) -> Array:
    """The same in other units, so that no product with a weight overflows."""
    largest = norms.max(initial=0.0)
    return norms / largest if largest else norms
