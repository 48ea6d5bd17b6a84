"""A linear classifier on a frozen backbone: ridge regression on standardised features, as one module.

With features f(x) = [class token, mean patch token] of the last LayerNorm, standardised on the training images to z,
and targets Y = one-hot labels minus their mean::

    B = (Z'Z + lambda I)^-1 Z'Y,      logits(x) = scale * (z B + mean Y)

In cross-validation on the training images ``lambda`` has the best accuracy, and ``scale`` the smallest cross entropy.
The scale changes no label; it makes a softmax of the scores mean something, which distillation needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

LAMBDAS = tuple(10.0**exponent for exponent in range(-1, 6))
SCALES = tuple(np.geomspace(1, 30, 40).tolist())
FOLDS = 5


class Probe(torch.nn.Module):
    """A vision transformer of timm and a linear ``head`` on [class token, mean patch token]; its output is logits."""

    def __init__(self, backbone: torch.nn.Module, head: torch.nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, classes)."""
        return self.head(features(self.backbone, images))


@dataclass(frozen=True)
class Fit:
    """What cross-validation chose. ``accuracy`` is that of the held-out folds, on training images."""

    regularisation: float
    scale: float
    accuracy: float


def features(backbone: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(n, 2 d): class token beside the mean of the patch tokens, after the last LayerNorm."""
    tokens = backbone.forward_features(images)
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)


def fit_probe(
    backbone: torch.nn.Module, images: torch.Tensor, labels: NDArray[np.int64], *, seed: int = 0
) -> tuple[Probe, Fit]:
    """A probe fitted on training images.

    Args:
        backbone: a timm vision transformer, in evaluation mode.
        images: (n, 3, h, w), as the backbone wants them.
        labels: (n,), 0 to classes - 1.
        seed: of the folds.
    """
    with torch.inference_mode():
        x = torch.cat([features(backbone, chunk) for chunk in images.split(128)]).double().numpy()
    fit = cross_validate(x, labels, seed=seed)
    weight, bias = ridge(x, labels, regularisation=fit.regularisation)
    head = torch.nn.Linear(*weight.shape)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fit.scale * weight.T))
        head.bias.copy_(torch.from_numpy(fit.scale * bias))
    return Probe(backbone, head).eval(), fit


def ridge(x: Array, labels: NDArray[np.int64], *, regularisation: float) -> tuple[Array, Array]:
    """Weight (features, classes) and bias (classes,) on the features as they are; the standardisation is folded in."""
    (solution,) = _ridge_path(x, labels, (regularisation,))
    return solution


def cross_validate(x: Array, labels: NDArray[np.int64], *, seed: int = 0) -> Fit:
    """The lambda with the best, and for it the scale with the smallest held-out error, over five folds."""
    fold = np.random.default_rng(seed).permutation(len(x)) % FOLDS
    scores = np.empty((len(LAMBDAS), len(x), int(labels.max()) + 1))
    for k in range(FOLDS):
        for i, (weight, bias) in enumerate(_ridge_path(x[fold != k], labels[fold != k], LAMBDAS)):
            scores[i, fold == k] = x[fold == k] @ weight + bias
    accuracy = (scores.argmax(2) == labels).mean(1)
    best = int(accuracy.argmax())
    losses = [_cross_entropy(scale * scores[best], labels) for scale in SCALES]
    return Fit(LAMBDAS[best], SCALES[int(np.argmin(losses))], float(accuracy[best]))


def _ridge_path(x: Array, labels: NDArray[np.int64], lambdas: tuple[float, ...]) -> list[tuple[Array, Array]]:
    """One eigendecomposition of Z'Z for all lambdas."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    z, targets = (x - mean) / deviation, np.eye(int(labels.max()) + 1)[labels]
    values, vectors = np.linalg.eigh(z.T @ z)
    projected = vectors.T @ (z.T @ (targets - targets.mean(0)))
    path = []
    for regularisation in lambdas:
        weight = vectors @ (projected / (values + regularisation)[:, None]) / deviation[:, None]
        path.append((weight, targets.mean(0) - mean @ weight))
    return path


def _cross_entropy(logits: Array, labels: NDArray[np.int64]) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean())
