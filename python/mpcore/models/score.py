"""What a weight is worth."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Matrix = np.ndarray[Any, Any]


class InputMoments(Protocol):
    """E x and E x^2 of the input rows x (columns,) of a layer."""

    @property
    def mean(self) -> Matrix: ...  # noqa: D102

    @property
    def square(self) -> Matrix: ...  # noqa: D102


def score(matrix: Matrix, moments: InputMoments | None, kind: str) -> Matrix:
    """Scores (rows, columns) >= 0, float32.

    Args:
        matrix: weights in the matrix view.
        moments: of the layer's inputs; magnitude does without.
        kind: ``magnitude`` |w|; ``wanda`` |w| sqrt(E x^2) (Sun et al. 2023); ``activation`` w^2 Var x, the diagonal of
            the layer's quadratic output error; ``quadratic`` is a cost of groups, not of weights, and ranks by
            ``activation`` where single weights must be ranked.

    Raises:
        ValueError: if the kind is unknown, or needs moments that are not there.
    """
    if kind == "magnitude":
        return np.abs(matrix)
    if kind not in ("wanda", "activation", "quadratic"):
        raise ValueError(f"score {kind!r} is not one of magnitude, wanda, activation, quadratic")
    if moments is None:
        raise ValueError(f"score {kind!r} needs calibration moments")
    if kind == "wanda":
        return np.abs(matrix) * np.sqrt(moments.square).astype(np.float32)
    variance = np.maximum(moments.square - moments.mean**2, 0.0)
    activation: Matrix = np.square(matrix) * variance.astype(np.float32)
    return activation
