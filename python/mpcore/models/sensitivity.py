"""What pruning each layer alone does to the answers: the costs of a budget under which layers compete."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mpcore.budget import fitting, reference_pattern
from mpcore.models.apply import Matrix
from mpcore.models.calibrate import CalibrationStats
from mpcore.models.certificate import LogitTrail
from mpcore.models.recipe import Recipe
from mpcore.models.sequence import Walk
from mpcore.models.solve import Problem, solve
from mpcore.records import LayerInfo, Pattern


@dataclass(frozen=True)
class Sensitivity:
    """One layer, pruned alone in the dense model.

    ``kl``: mean KL(dense || model) in nats at ``reference``; ``gain``: root mean square change of the logits per that
    of the layer's outputs; ``errors``: relative output error at every candidate that fits.
    """

    name: str
    reference: Pattern
    kl: float
    gain: float
    errors: dict[Pattern, float]

    def costs(self) -> dict[Pattern, float]:
        """Estimated KL at every candidate: kl * e(pattern) / e(reference), as errors are small and add up."""
        base = self.errors[self.reference]
        return {pattern: self.kl * error / base if base > 0 else 0.0 for pattern, error in self.errors.items()}


def measure_sensitivities(
    dense: nn.Module,
    layers: Sequence[LayerInfo],
    stats: CalibrationStats,
    batches: Sequence[Any],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Sensitivity]:
    """Prune every layer alone, by the recipe's score and solver on dense inputs, and look at the answers.

    Takes one forward pass of ``recipe.sensitivity_samples`` calibration samples and one solved problem per candidate
    pattern for every layer. The relation of KL to layer error is measured once per layer, at the recipe's own
    pattern; layer errors alone do not rank layers (docs/method.md).

    Args:
        dense: left untouched.
        layers: an inventory's layers; those that take no candidate are left out.
        stats: of :func:`mpcore.models.calibrate.calibrate` on the same batches.
        batches: calibration batches.
        recipe: its pattern (one, not a table), candidates, score, solver and damping.
        seed: of the positions.
        progress: told of each layer.
    """
    pattern, menu = Pattern(str(recipe.pattern)), [Pattern(text) for text in recipe.candidates]
    found = {layer.name: reference_pattern(layer, pattern, menu) for layer in layers if layer.name in stats}
    references = {name: reference for name, reference in found.items() if reference is not None}
    one_by_one = dataclasses.replace(recipe, sequence="parallel")
    pruned = copy.deepcopy(dense).eval()
    walk = Walk(dense, pruned, references, stats, batches, one_by_one, seed=seed)
    trail = LogitTrail(dense, batches, recipe.sensitivity_samples)
    info = {layer.name: layer for layer in layers}
    results = {}
    for name in walk.order:
        problem, moments, correctable = walk.problem(name)
        options = dict.fromkeys([references[name], *fitting(info[name], menu)])
        solved = {candidate: solve(problem, candidate, one_by_one) for candidate in options}
        reference = solved[references[name]]
        before = copy.deepcopy(pruned.state_dict())
        walk.apply(name, reference.weight, moments.shift(problem.weight, reference.weight) if correctable else None)
        logits = trail.logits(pruned)
        pruned.load_state_dict(before)
        errors = {candidate: solution.error for candidate, solution in solved.items()}
        gain = _rms(logits - trail.dense) / max(_moved(problem, reference.weight), np.finfo(np.float64).tiny)
        results[name] = Sensitivity(name, references[name], _kl(trail.dense, logits), gain, errors)
        progress(name)
    return results


def input_norms(stats: Mapping[str, Any]) -> dict[str, float]:
    """Root mean square of |v|_2 over a layer's inputs."""
    return {name: float(np.sqrt(moments.square.sum())) for name, moments in stats.items()}


def _moved(problem: Problem, weight: Matrix) -> float:
    """Root mean square change of the layer's output vector: sqrt(tr D H D')."""
    change = (weight - problem.weight).astype(np.float64)
    return float(np.sqrt(max(np.einsum("ij,ij->", change @ problem.gram, change), 0.0)))


def _rms(change: Matrix) -> float:
    return float(np.sqrt((change**2).sum(axis=1).mean()))


def _kl(dense: Matrix, moved: Matrix) -> float:
    """Mean KL(dense || moved) of the softmax, at least 0."""
    p, q = (torch.log_softmax(torch.from_numpy(z), dim=1) for z in (dense, moved))
    return max(float((p.exp() * (p - q)).sum(dim=1).mean()), 0.0)
