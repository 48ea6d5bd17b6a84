"""The layer-wise problem: keep N of every M weights of one matrix so that its outputs change little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpcore import compensate, masks
from mpcore.models.apply import Matrix
from mpcore.models.calibrate import Moments
from mpcore.models.recipe import Recipe
from mpcore.models.score import score
from mpcore.records import Pattern


@dataclass(frozen=True)
class Problem:
    """min tr (W' - T) H (W' - T)' over N:M matrices W'.

    ``weight`` W and ``target`` T are (rows, columns) float32; T = W unless it was fitted to the dense path.
    ``moments`` are those of the inputs; ``gram`` is the H of the objective, centred where the mean is corrected for.
    """

    weight: Matrix
    target: Matrix
    moments: Moments
    gram: Matrix


@dataclass(frozen=True)
class Solution:
    """Pruned weights with exact zeros, their mask, and relative output errors with and without compensation."""

    weight: Matrix
    mask: Matrix
    error: float
    mask_only_error: float
    kept_score: float


def solve(problem: Problem, pattern: Pattern, recipe: Recipe) -> Solution:
    """Mask and weights by the recipe's score and solver."""
    target, gram = problem.target, problem.gram
    if recipe.solver == "admm":
        weight = compensate.admm(target, gram, pattern, damping=recipe.damping)
    elif recipe.solver == "sparsegpt":
        weight = compensate.sparsegpt(target, gram, pattern, damping=recipe.damping)
    else:
        mask = mask_of(problem, pattern, recipe.score)
        fit = recipe.solver == "lstsq"
        weight = (
            compensate.lstsq(target, gram, mask, damping=recipe.damping)
            if fit
            else np.where(mask, target, np.float32(0))
        )
    if recipe.solver in ("admm", "sparsegpt"):
        mask = masks.nm_mask(np.abs(weight), pattern)
    worth = score(problem.weight, problem.moments, "activation").astype(np.float64)
    total = float(worth.sum())
    return Solution(
        weight=np.where(mask, weight, np.float32(0)),
        mask=mask,
        error=compensate.output_error(target, weight, gram),
        mask_only_error=compensate.output_error(target, np.where(mask, target, np.float32(0)), gram),
        kept_score=float(worth[mask].sum()) / total if total > 0 else 1.0,
    )


def mask_of(problem: Problem, pattern: Pattern, kind: str) -> Matrix:
    """N:M mask by a score of single weights, or by the exact quadratic cost of whole groups."""
    if kind != "quadratic":
        return masks.nm_mask(score(problem.target, problem.moments, kind), pattern)
    groups, size = problem.gram.shape[0] // pattern.group, pattern.group
    blocks = problem.gram.reshape(groups, size, groups, size)
    diagonal = np.ascontiguousarray(blocks[np.arange(groups), :, np.arange(groups), :])
    return masks.quadratic_mask(problem.target, diagonal, pattern)
