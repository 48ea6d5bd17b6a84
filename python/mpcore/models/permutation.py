"""Find an order for every permutation group of a model and fold it into the weights, checking that nothing changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mpcore.models import plans
from mpcore.models.apply import Matrix, as_matrix, layer_of
from mpcore.models.batches import forward, place
from mpcore.models.calibrate import CalibrationStats
from mpcore.models.recipe import Recipe
from mpcore.models.score import score
from mpcore.permute import PermutationResult, optimize_permutation
from mpcore.records import Pattern, PermutedGroup
from mpcore.reference import kept_score

TOLERANCE = 1e-9
"""Largest relative change of the float64 outputs for an order to be accepted."""
RESIDUAL = "reads a residual stream; permute = 'residual' reorders it"
"""Why a layer that the trace could reorder is left alone."""
TIME_LIMIT = 3600.0
"""Seconds for one group; the rounds of the recipe end the search long before, so that it can be repeated."""


def permute_channels(
    model: nn.Module,
    patterns: Mapping[str, Pattern],
    stats: CalibrationStats,
    recipe: Recipe,
    sample: Any,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[tuple[PermutedGroup, ...], dict[str, str]]:
    """Permute the channels of ``model`` in place so that N:M groups keep as much of the score as possible.

    Each order is folded into the layers around the channels and kept only if the float64 output on ``sample`` stays
    the same; otherwise it is rolled back.

    Returns:
        The groups that were permuted, and consumer name -> why a group was refused.
    """
    check = OutputCheck(model, sample)
    groups, refused = find_groups(model, sample, recipe)
    done, refused = [], {name: reason for name, reason in refused.items() if name in patterns}
    for group in groups:
        names = [name for name in group.consumers if name in patterns]
        if not names:
            continue
        progress(names[0])
        pattern, width = patterns[names[0]], layer_of(model, names[0]).weight.shape[1] // group.blocks
        if width % pattern.group:
            refused[names[0]] = f"a run of {width} channels is not a multiple of group = {pattern.group}"
            continue
        scores = np.concatenate([channel_scores(model, name, stats, recipe.score) for name in names])
        results, order = order_blocks(scores, pattern, group.blocks, recipe, seed=seed)
        change = check.apply(group, order)
        if not change <= TOLERANCE:
            refused[names[0]] = f"the order changed the output by {change:.1e}: this is not a free permutation"
            continue
        plans.fold(model, group, order)
        done.append(_record(group, order, results, change))
    return tuple(done), refused


def find_groups(
    model: nn.Module, sample: Any, recipe: Recipe
) -> tuple[tuple[plans.PermutationGroup, ...], dict[str, str]]:
    """The groups that a recipe asks for, and consumer name -> why tracing refused it.

    Families are known by template. A network that matches none is traced on ``sample``, and so is every network whose
    other layers are to be permuted too; where a template and the trace meet, the template goes first.
    """
    found = plans.find(model)
    if found and recipe.permute not in ("residual", "gather"):
        return found, {}
    traced = plans.trace(copy.deepcopy(model).eval(), place(sample, model))
    taken = {name for group in found for name in group.consumers}
    residual = recipe.permute == "residual"
    extra = [*traced.groups, *(traced.streams if residual else ())]
    groups = found + tuple(group for group in extra if taken.isdisjoint(group.consumers))
    if recipe.permute == "gather":
        return groups + plans.at_run_time(model, {name for group in groups for name in group.consumers}), {}
    held_back = {name: RESIDUAL for group in traced.streams for name in group.consumers if not residual}
    refused = {name: why for name, why in {**traced.refused, **held_back}.items() if name not in taken}
    return groups, refused


def channel_scores(model: nn.Module, name: str, stats: CalibrationStats, kind: str) -> Matrix:
    """(rows x kernel positions, channels): the score of a layer with its input channels as columns."""
    weight = layer_of(model, name).weight
    return score(as_matrix(weight), stats[name], kind).reshape(-1, weight.shape[1])


def order_blocks(
    scores: Matrix, pattern: Pattern, blocks: int, recipe: Recipe, *, seed: int
) -> tuple[list[PermutationResult], list[int]]:
    """An order for each run of channels that must stay in its place; ``order[new] = old`` over all of them."""
    width = scores.shape[1] // blocks
    parts = [np.ascontiguousarray(scores[:, start : start + width]) for start in range(0, scores.shape[1], width)]
    if recipe.permute == "interleave":
        results = [interleave(part, pattern) for part in parts]
    else:
        rounds = recipe.permute_rounds
        results = [
            optimize_permutation(part, pattern, time_limit=TIME_LIMIT, max_rounds=rounds, seed=seed) for part in parts
        ]
    if any(result.interrupted for result in results):
        raise KeyboardInterrupt
    order = [block * width + int(old) for block, result in enumerate(results) for old in result.order]
    return results, order


def interleave(scores: Matrix, pattern: Pattern) -> PermutationResult:
    """Columns by falling sum of their scores, cut into M runs; every group takes one column of each run.

    The paper's heuristic (arXiv 2606.02608, code for 6:12 and 8:16): it spreads the important columns over the groups
    and, unlike the search, may keep less than the given order.
    """
    order = np.argsort(-scores.sum(0, dtype=np.float64), kind="stable").reshape(pattern.group, -1).T.ravel()
    given = optimize_permutation(scores, pattern, max_rounds=0)
    return dataclasses.replace(given, order=order, kept=kept_score(scores, order, pattern.keep, pattern.group))


class OutputCheck:
    """A float64 copy of the model on a small sample: applies an order and undoes it if the output changes."""

    def __init__(self, model: nn.Module, sample: Any) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.sample = place(sample, self.model, torch.float64)
        self.expected = self._output()

    @torch.inference_mode()
    def _output(self) -> torch.Tensor:
        return forward(self.model, self.sample)

    def apply(self, group: plans.PermutationGroup, order: list[int]) -> float:
        """Largest output change relative to the largest output; beyond :data:`TOLERANCE` the order is undone."""
        plans.fold(self.model, group, order)
        scale = float(self.expected.abs().max()) or 1.0
        change = float((self._output() - self.expected).abs().max()) / scale
        if not change <= TOLERANCE:
            plans.fold(self.model, group, np.argsort(order).tolist())
        return change


def _record(
    group: plans.PermutationGroup, order: list[int], results: list[PermutationResult], change: float
) -> PermutedGroup:
    kept, identity, row_bound, upper = (
        float(sum(getattr(result, field) for result in results))
        for field in ("kept", "kept_identity", "row_bound", "upper_bound")
    )
    room = row_bound - identity
    return PermutedGroup(
        consumers=group.consumers,
        producers=tuple(producer.name for producer in group.producers),
        order=tuple(order),
        kept=kept,
        kept_identity=identity,
        row_bound=row_bound,
        upper_bound=upper,
        efficacy=(kept - identity) / room if room > 0 else 0.0,
        output_change=change,
        gathered=group.gathered,
    )
