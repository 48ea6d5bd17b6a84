"""Slow, readable NumPy twins of the native routines: oracle of the tests, and text for readers."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# compensate


def damped(gram: Array, damping: float) -> Array:
    """H + lambda I with lambda = max(damping, 1e-7) * mean(diag H); the identity where H is all zeros."""
    mean = np.diag(gram).mean()
    return gram + (max(damping, 1e-7) * mean if mean > 0 else 1.0) * np.eye(len(gram))


def largest(magnitudes: Array, keep: int, group: int) -> Array:
    """Mask of the ``keep`` largest of every ``group`` consecutive columns, ties to the lower column."""
    groups = magnitudes.reshape(len(magnitudes), -1, group)
    order = np.argsort(-groups, axis=2, kind="stable")[:, :, :keep]
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order, True, axis=2)
    kept: Array = mask.reshape(magnitudes.shape)
    return kept


def lstsq(W: Array, gram: Array, mask: Array, damping: float) -> Array:
    """Minimise tr((W' - W)(H + lambda I)(W' - W)') over W' zero off the mask, one dense problem per row."""
    root = np.linalg.cholesky(damped(gram, damping)).T
    fitted = np.zeros(W.shape)
    for row, kept in enumerate(mask):
        fitted[row, kept] = np.linalg.lstsq(root[:, kept], root @ W[row], rcond=None)[0]
    return fitted


def sparsegpt(W: Array, gram: Array, keep: int, group: int, damping: float, mask: Array | None = None) -> Array:
    """SparseGPT with the inverse of the remaining columns' moments recomputed at every column.

    Removing w_j moves the columns still to come by -w_j (H_F^-1)_j / (H_F^-1)_jj, where F holds j and those columns; a
    group on entry keeps the largest w_j^2 / (H_F^-1)_jj.
    """
    moments, W, columns = damped(gram, damping), W.astype(np.float64), W.shape[1]
    kept = np.zeros(W.shape, bool) if mask is None else mask
    inverse = [np.linalg.inv(moments[j:, j:]) for j in range(columns)]
    for j in range(columns):
        if j % group == 0 and mask is None:
            saliency = [W[:, i] ** 2 / inverse[i][0, 0] for i in range(j, j + group)]
            kept[:, j : j + group] = largest(np.stack(saliency, axis=1), keep, group)
        error = np.where(kept[:, j], 0.0, W[:, j]) / inverse[j][0, 0]
        W[:, j:] -= np.outer(error, inverse[j][0])
    return np.where(kept, W, 0.0)


def admm(W: Array, gram: Array, keep: int, group: int, damping: float, steps: int) -> Array:
    """ADMM on the mask in unit-diagonal coordinates, then exact least squares on its support."""
    moments = damped(gram, damping)
    scale = np.sqrt(np.diag(moments))
    A, V = moments / np.outer(scale, scale), W * scale
    kept = largest(np.abs(V), keep, group)
    D, U, rho = np.where(kept, V, 0.0), np.zeros(V.shape), 0.05
    for _ in range(steps):
        Z = np.linalg.solve(A + rho * np.eye(len(A)), (V @ A + rho * (D - U)).T).T
        Y = Z + U
        kept = largest(np.abs(Y), keep, group)
        D = np.where(kept, Y, 0.0)
        U = Y - D
        rho *= 1.12
    return lstsq(W, gram, kept, damping)


def output_error(W: Array, W_pruned: Array, inputs: Array) -> float:
    """Relative squared error of the outputs on the inputs themselves, (samples, columns)."""
    wanted, got = inputs @ W.T, inputs @ W_pruned.T
    return float(((got - wanted) ** 2).sum() / (wanted**2).sum())


# certify


def margins(logits: Array) -> tuple[Array, Array]:
    """Label with the largest logit, ties to the lower one, and its lead over the runner-up."""
    ordered = np.sort(logits, axis=1)
    return logits.argmax(axis=1), ordered[:, -1] - ordered[:, -2]


def label_margins(logits: Array, labels: Array) -> Array:
    """Logit of the label minus the largest of the others."""
    rows = [row[label] - np.delete(row, label).max() for row, label in zip(logits, labels, strict=True)]
    return np.array(rows)


def largest_changes(dense: Array, pruned: Array) -> Array:
    """Largest |change| of any logit, by sample."""
    changes: Array = np.abs(pruned - dense).max(axis=1)
    return changes
