"""Prune a network layer by layer in the order it is run, the dense path beside the pruned one.

Inputs of a layer come from the already pruned prefix and its targets from the dense model, so that a layer also repairs
what the layers before it broke; a layer of which the data choose the rows keeps its own weights as the target. Moments
are streamed: memory is O(columns^2) for the one layer in hand, plus the activations of the calibration set at one block
boundary of each path, plus the inputs of the layers of one block where they take no more than :data:`AHEAD`. Where the
network is no chain of blocks, or the pruned one turns out to be none, every pass is a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mpcore.models.apply import Matrix, as_matrix, layer_of, set_weight, shift_output
from mpcore.models.calibrate import Accumulator, CalibrationStats, Moments, about_zero
from mpcore.models.certificate import LogitTrail
from mpcore.models.inventory import shared
from mpcore.models.proof import find_routed, find_segments
from mpcore.models.recipe import Recipe
from mpcore.models.segments import Chain, Path, Unsound
from mpcore.models.solve import Problem, Solution, solve
from mpcore.records import Pattern, PlannedLayer

ROUNDING = (64 * float(np.finfo(np.float32).eps)) ** 2
"""Share of an input's mean square below which its variance is rounding noise of float32 activations."""
AHEAD = 1 << 30
"""Most bytes of inputs of one block's layers that are kept so that the dense block runs once, not once per layer."""
SLACK = 1e-2
"""Share of the largest change of a logit by which steps by segments may miss whole passes."""


@dataclass(frozen=True)
class Pruned:
    """One finished layer: weights and mask in the matrix view, shift of its mean output (None: no place for it)."""

    plan: PlannedLayer
    weight: Matrix
    mask: Matrix
    shift: Matrix | None


@dataclass(frozen=True)
class CrossMoments:
    """Of the pruned path's inputs z, and across to the dense path's x: E x and E x z'."""

    pruned: Moments
    dense_mean: Matrix
    cross: Matrix

    def shift(self, dense: Matrix, weight: Matrix) -> Matrix:
        """What is to be added to W' z so that its mean is that of W x."""
        return dense.astype(np.float64) @ self.dense_mean - weight.astype(np.float64) @ self.pruned.mean


class Walk:
    """Walks both paths from layer to layer; see :func:`prune_layers`. With ``whole``, every pass is a whole one."""

    def __init__(
        self,
        dense: nn.Module,
        pruned: nn.Module,
        patterns: Mapping[str, Pattern],
        stats: CalibrationStats,
        batches: Sequence[Any],
        recipe: Recipe,
        *,
        seed: int,
        whole: bool = False,
    ) -> None:
        self.dense, self.pruned, self.patterns, self.stats, self.recipe, self.seed = (
            dense,
            pruned,
            patterns,
            stats,
            recipe,
            seed,
        )
        self.order = [name for name in stats if name in patterns]
        self.segments = Chain() if whole else find_segments(dense, self.order, batches)
        # Where the data choose the rows, no row of the one path is known to belong to a row of the other.
        fitted = recipe.sequence == "asymmetric"
        self.routed = find_routed(dense, self.order, batches) if fitted else frozenset[str]()
        self.stages = self._stages(self.segments)
        self.dense_path, self.pruned_path = (Path(model, self.segments, batches) for model in (dense, pruned))
        self.batches = range(len(batches))
        self.tied = shared(pruned, "bias")

    def _stages(self, segments: Sequence[str]) -> dict[str, int]:
        """Layer -> stage of the paths; layers outside the segments come before the first or after the last."""
        stages, reached = {}, 0
        for name in self.order:
            inside = next((k for k, segment in enumerate(segments) if name.startswith(f"{segment}.")), None)
            reached = reached if inside is None else inside + 1
            outside = 0 if reached == 0 else len(segments) + 1
            stages[name] = outside if inside is None else inside + 1
        self.order.sort(key=lambda name: stages[name])  # stable: call order within a stage
        return stages

    def walk_to(self, name: str) -> None:
        """Advance both paths, as far as the recipe needs them, to the stage that holds ``name``."""
        while self.dense_path.stage < self.stages[name]:
            if self.recipe.sequence != "sequential":
                self.dense_path.advance()
                layers = [layer for layer in self.order if self.stages[layer] == self.dense_path.stage]
                self.dense_path.run_ahead(layers, positions=self.recipe.positions, seed=self.seed, most=AHEAD)
            else:
                self.dense_path.stage += 1
            if self.recipe.sequence != "parallel":
                self.pruned_path.advance()
            else:
                self.pruned_path.stage += 1

    def problem(self, name: str) -> tuple[Problem, CrossMoments, bool]:
        """The layer's problem, the moments behind it, and whether its mean output can be corrected."""
        self.walk_to(name)
        module = layer_of(self.pruned, name)
        # Masks alone leave the mean output where they leave it, and have to be chosen with it in view.
        place = name in self.stats.norms if module.bias is None else name not in self.tied
        correctable = self.recipe.solver != "none" and place
        moments = self._moments(name)
        problem = _problem(as_matrix(module.weight), moments, self.recipe.damping, centred=correctable)
        return problem, moments, correctable

    def prune(self, name: str) -> Pruned:
        """Solve one layer; the model is not changed."""
        problem, moments, correctable = self.problem(name)
        solution = solve(problem, self.patterns[name], self.recipe)
        shift = moments.shift(problem.weight, solution.weight) if correctable else None
        plan = _plan(name, self.patterns[name], tuple(layer_of(self.pruned, name).weight.shape), solution)
        return Pruned(plan, solution.weight, solution.mask, shift)

    def apply(self, name: str, weight: Matrix, shift: Matrix | None) -> None:
        """Write a layer's new matrix and the shift of its mean output (None: no place for it) into the pruned model."""
        module = layer_of(self.pruned, name)
        set_weight(module, weight)
        if shift is not None:
            norm = self.stats.norms.get(name)
            shift_output(module, self.pruned.get_submodule(norm) if norm else None, shift)

    def _moments(self, name: str) -> CrossMoments:
        """Stream the rows of one layer through both paths, or through the one that stands for both."""
        columns = int(np.prod(layer_of(self.pruned, name).weight.shape[1:]))
        total, dense = Accumulator(columns, gram=True), Accumulator(columns, gram=False)
        product = torch.zeros(columns, columns, dtype=torch.float64)
        both = self.recipe.sequence == "asymmetric" and name not in self.routed
        path = self.dense_path if self.recipe.sequence == "parallel" else self.pruned_path
        for index in self.batches:
            z = path.rows(name, index, positions=self.recipe.positions, seed=self.seed)
            moved = total.add(z)
            if both:
                x = self.dense_path.rows(name, index, positions=self.recipe.positions, seed=self.seed)
                x = x if len(x) == len(z) else z  # no row of the one belongs to a row of the other
                product += (dense.add(x).T @ moved).double().cpu()
        if not total.count:
            return _without_rows(self.stats[name])
        moments = total.moments()
        if not both:
            assert moments.gram is not None
            return CrossMoments(moments, moments.mean, moments.gram)
        mean = dense.moments().mean
        means = torch.from_numpy(mean), torch.from_numpy(moments.mean)
        cross = about_zero(product / total.count, means, (dense.centre, total.centre))
        return CrossMoments(moments, mean, cross.numpy())


def _without_rows(dense: Moments) -> CrossMoments:
    """For a layer that the pruned model never comes to: the dense model's moments, its inputs as if uncorrelated."""
    gram = np.diag(dense.square - dense.mean**2) + np.outer(dense.mean, dense.mean)
    return CrossMoments(Moments(dense.count, dense.mean, dense.square, gram), dense.mean, gram)


def _problem(weight: Matrix, moments: CrossMoments, damping: float, *, centred: bool) -> Problem:
    """The target T = W (G + l I)(H + l I)^-1 with H = E z z', G = E x z', both centred where the mean is corrected for.

    W x is the dense path's output; T z is its best linear prediction from the pruned path's inputs, shrunk towards W by
    l = damping * mean diag H.
    """
    gram, cross = moments.pruned.gram, moments.cross
    assert gram is not None
    if centred:
        gram = gram - np.outer(moments.pruned.mean, moments.pruned.mean)
        cross = cross - np.outer(moments.dense_mean, moments.pruned.mean)
        # What varies by no more than its rounding is a constant.
        constant = np.diagonal(gram) <= ROUNDING * moments.pruned.square
        gram[constant], gram[:, constant], cross[:, constant] = 0.0, 0.0, 0.0
    target = weight
    if moments.cross is not moments.pruned.gram:
        ridge = max(damping * float(np.diagonal(gram).mean()), np.finfo(np.float64).tiny) * np.eye(len(gram))
        target = np.linalg.solve(gram + ridge, (weight.astype(np.float64) @ (cross + ridge)).T).T.astype(np.float32)
    return Problem(weight, np.ascontiguousarray(target), moments.pruned, gram)


def _plan(name: str, pattern: Pattern, shape: tuple[int, ...], solution: Solution) -> PlannedLayer:
    return PlannedLayer(
        name=name,
        pattern=pattern,
        shape=shape,
        kept=int(solution.mask.sum()),
        kept_score=solution.kept_score,
        relative_error=solution.error,
        mask_only_error=solution.mask_only_error,
    )


def prune_layers(
    walk: Walk,
    *,
    stored: Callable[[str], Pruned | None] = lambda _: None,
    finished: Callable[[str, Pruned], None] = lambda _name, _result: None,
) -> dict[str, Pruned]:
    """Prune every layer of a walk in order, in place in its pruned model.

    Args:
        walk: the two models, the patterns and the calibration batches.
        stored: gives a layer's result of an interrupted run, or None.
        finished: told of each layer once it is in place.
    """
    results = {}
    for name in walk.order:
        result = stored(name)
        if result is None:
            result = walk.prune(name)
        walk.apply(name, result.weight, result.shift)
        results[name] = result
        finished(name, result)
    return results


def settle(trail: LogitTrail, walk: Walk) -> None:
    """Take a trail's last logits from whole forward passes of the finished model, whatever was run by segments.

    What they differ by is added to the last step, so that the steps still add up to at least the whole change.

    Raises:
        Unsound: if they differ by more than rounding and a hundredth of the change: the pruned model is not the chain
            of segments that the dense one is.
    """
    logits = trail.logits(walk.pruned)
    missed = np.abs(logits - trail.now).max(axis=1)
    rounding = 1e-5 * np.abs(logits).max()
    if walk.segments and missed.max() > rounding + SLACK * np.abs(logits - trail.dense).max():
        raise Unsound(f"by segments the logits are off by {missed.max():.3g}")
    if missed.any() and trail.path:
        trail.path[list(trail.path)[-1]] += missed
    trail.now = logits
