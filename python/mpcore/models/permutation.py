"""Find an order for every permutation group of a model and fold it into the weights, checking that nothing changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpcore.models import plans
from mpcore.models.apply import Matrix, as_matrix, layer_of
from mpcore.models.batches import call, place, tensors_of
from mpcore.models.calibrate import CalibrationStats
from mpcore.models.randomness import lend_generators, seed_generators
from mpcore.models.recipe import Recipe
from mpcore.models.score import score
from mpcore.permute import PermutationResult, optimize_permutation
from mpcore.records import Pattern, PermutedGroup
from mpcore.reference import kept_score

TOLERANCE = 1e-9
"""Largest relative change of the float64 outputs for an order to be accepted."""
SINGLE = 1000 * torch.finfo(torch.float32).eps
"""The same for a model that runs in float32 alone: sums over channels come out in another order, layer after layer."""
NOT_FREE = "the order changed the output by {:.1e}: this is not a free permutation"
"""Why a group is refused that the check refutes."""
STEADY = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
"""Modules that draw at random or keep statistics in training mode."""
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

    Each order is folded into the layers around the channels. Every tensor of the output on ``sample`` has to stay the
    same, in float64 (:class:`OutputCheck`): under a random order of each group beforehand, under all orders at the end.

    Returns:
        The groups that were permuted, and consumer name -> why a group was refused.
    """
    check = OutputCheck(model, sample)
    groups, refused = find_groups(model, sample, recipe, check)
    refused = {name: reason for name, reason in refused.items() if name in patterns}
    wrong = check.refute(groups)
    done: list[tuple[plans.PermutationGroup, list[int], list[PermutationResult]]] = []
    for group in groups:
        runs = [run for run in group.runs() if run[0] in patterns]
        if not runs:
            continue
        name, channels = runs[0][0], plans.channels_of(model, group)
        progress(name)
        if group in wrong:
            refused[name] = NOT_FREE.format(wrong[group])
            continue
        pattern, width = patterns[name], channels // group.blocks
        if width % pattern.group:
            refused[name] = f"a run of {width} channels is not a multiple of group = {pattern.group}"
            continue
        if apart := [start for _, start, step in runs if start % pattern.group or step % pattern.group]:
            refused[name] = f"a run that begins at channel {apart[0]} is not at a multiple of group = {pattern.group}"
            continue
        scores = np.concatenate(
            [
                channel_scores(model, name, stats, recipe.score)[:, plans.places_of(group, channels, *place).numpy()]
                for name, *place in runs
            ]
        )
        results, order = order_blocks(scores, pattern, group.blocks, recipe, seed=seed)
        for network in (model, check.model):
            plans.fold(network, group, order)
        done.append((group, order, results))
    while not (change := check.change()) <= check.tolerance and done:
        group, order, _ = done.pop()
        for network in (model, check.model):
            plans.fold(network, group, np.argsort(order).tolist())
        refused[group.consumers[0]] = NOT_FREE.format(change)
    permuted = {name for group, *_ in done for name in group.consumers}
    reasons = {name: why for name, why in refused.items() if name not in permuted}
    return tuple(_record(*entry, change) for entry in done), reasons


def find_groups(
    model: nn.Module, sample: Any, recipe: Recipe, check: OutputCheck | None = None
) -> tuple[tuple[plans.PermutationGroup, ...], dict[str, str]]:
    """The groups that a recipe asks for, and consumer name -> why it is in none.

    Families are known by template, and a template that the check refutes is dropped. For other layers the network is
    traced on ``sample``; where both know a layer the template goes first, as it orders every head by itself.
    """
    check = OutputCheck(model, sample) if check is None else check
    if check.failure:
        layers = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
        return (), dict.fromkeys(layers, check.failure)
    templates = plans.find(model)
    wrong = check.refute(templates)
    found = tuple(group for group in templates if group not in wrong)
    traced = plans.trace(copy.deepcopy(model).eval(), place(sample, model))
    taken = {name for group in found for name in group.consumers}
    residual = recipe.permute == "residual"
    extra = [*traced.groups, *(traced.streams if residual else ())]
    groups = found + _by_head(model, [group for group in extra if taken.isdisjoint(group.consumers)], check)
    if recipe.permute == "gather":  # an order of all inputs of a layer is worth more than one of each run
        groups = tuple(group for group in groups if not group.starts)
    taken = {name for group in groups for name in group.consumers}
    if recipe.permute == "gather":
        return groups + plans.at_run_time(model, taken), {}
    refuted = {name: NOT_FREE.format(change) for group, change in wrong.items() for name in group.consumers}
    held_back = {name: RESIDUAL for group in traced.streams for name in group.consumers if not residual}
    refused = {name: why for name, why in {**refuted, **traced.refused, **held_back}.items() if name not in taken}
    return groups, refused


def _by_head(
    model: nn.Module, groups: Sequence[plans.PermutationGroup], check: OutputCheck
) -> tuple[plans.PermutationGroup, ...]:
    """The groups, with an order per head wherever a guess at the heads holds on the sample."""
    guesses = {group: plans.by_head(model, group) for group in groups}
    found: dict[plans.PermutationGroup, plans.PermutationGroup] = {}
    for turn in range(max(map(len, guesses.values()), default=0)):
        tried = {
            group: options[turn] for group, options in guesses.items() if turn < len(options) and group not in found
        }
        wrong = check.refute(list(tried.values()))
        found |= {group: guess for group, guess in tried.items() if guess not in wrong and check.sees(guess)}
    return tuple(found.get(group, group) for group in groups)


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
    """A float64 copy of the model on a small sample, and how far orders folded into it change the output.

    Every tensor of the output counts, through tuples, lists, dicts and dataclasses. So does what the model returns in
    training mode, if that differs and does not depend on chance: an auxiliary output, say. Dropout and BatchNorm stay
    in evaluation mode meanwhile. A model that needs targets in training mode is checked in evaluation mode alone.

    A model that does not run in float64 is checked in float32, against a wider ``tolerance``, which also holds for one
    that computes in float32 on the way, as Llama's norms do; ``failure`` says why one that runs in neither cannot be
    checked.
    """

    def __init__(self, model: nn.Module, sample: Any) -> None:
        self.failure = ""
        try:
            self._prepare(copy.deepcopy(model).double(), sample, torch.float64, TOLERANCE)
        except Exception:  # whatever the model's own code raises that puts float32 beside float64
            try:
                self._prepare(copy.deepcopy(model).float(), sample, torch.float32, SINGLE)
            except Exception as error:
                told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
                self.failure = f"the output cannot be checked in float64 or float32 ({told})"

    def _prepare(self, model: nn.Module, sample: Any, dtype: torch.dtype, tolerance: float) -> None:
        self.model = model.eval()
        self.sample = place(sample, self.model, dtype)
        with _Types() as inside:
            self.expected = self._output()
        # An output that the model rounds cannot agree better than its own numbers can.
        coarsest = max((torch.finfo(t.dtype).eps for t in self.expected if t.is_floating_point()), default=0.0)
        rounds = max(inside.found, key=lambda dtype: torch.finfo(dtype).eps, default=None) == torch.float32
        self.tolerance = max(tolerance, 4 * coarsest, SINGLE if rounds else 0.0)
        self.trained = self._expected_in_training()

    @torch.no_grad()
    def _output(self) -> list[Tensor]:
        return tensors_of(call(self.model, self.sample))

    @torch.no_grad()
    def _output_in_training(self, seed: int = 0) -> list[Tensor]:
        """In training mode, but for Dropout and BatchNorm, on a copy: such a pass may change buffers."""
        model = copy.deepcopy(self.model).train()
        for module in model.modules():
            if isinstance(module, STEADY):
                module.eval()
        with lend_generators(next((p.device for p in model.parameters()), torch.device("cpu"))):
            seed_generators(seed)
            return tensors_of(call(model, self.sample))

    def _expected_in_training(self) -> list[Tensor] | None:
        """What training mode gives if it is not the output over again and does not depend on chance, else None."""
        try:
            found = self._output_in_training()
            if relative_change(self.expected, found) <= self.tolerance:
                return None
            again = self._output_in_training(seed=1)
        except Exception:  # whatever the model raises where it is given inputs alone in training mode
            return None
        return found if relative_change(found, again) <= self.tolerance else None

    def change(self) -> float:
        """Largest change of the outputs so far, relative to the largest entry of the tensor it is in."""
        change = relative_change(self.expected, self._output())
        if self.trained is not None and change <= self.tolerance:
            change = max(change, relative_change(self.trained, self._output_in_training()))
        return change

    def refute(self, groups: Sequence[plans.PermutationGroup]) -> dict[plans.PermutationGroup, float]:
        """The groups that are not free, with the change that a random order makes; the copy stays as it was.

        All are tried at once first, and one by one only if that changes the output.
        """
        orders = {group: self._shuffled(group) for group in groups}
        if self._change_by(orders) <= self.tolerance:
            return {}
        changes = {group: self._change_by({group: order}) for group, order in orders.items()}
        return {group: change for group, change in changes.items() if not change <= self.tolerance}

    def sees(self, group: plans.PermutationGroup) -> bool:
        """Whether the output shows that consumers alone are reordered: otherwise it proves nothing about the group."""
        half = dataclasses.replace(group, producers=(), channelwise=(), tensors=())
        return bool(self.refute([half]))

    def _shuffled(self, group: plans.PermutationGroup) -> list[int]:
        """An order of the group's channels that moves none of them out of its run."""
        draw, channels = np.random.default_rng(0), plans.channels_of(self.model, group)
        runs = np.arange(channels).reshape(group.blocks, -1)
        return [int(old) for run in runs for old in draw.permutation(run)]

    def _change_by(self, orders: Mapping[plans.PermutationGroup, list[int]]) -> float:
        """:meth:`change` by these orders, which are undone."""
        for group, order in orders.items():
            plans.fold(self.model, group, order)
        change = self.change()
        for group, order in reversed(list(orders.items())):
            plans.fold(self.model, group, np.argsort(order).tolist())
        return change


class _Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the floating-point types of everything that is computed; a conversion or a view computes nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is not torch.ops.aten._to_copy.default and not function.is_view:
            self.found |= {t.dtype for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()}
        return result


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest change of an entry relative to the largest finite one of its tensor.

    Infinite where tensors differ in number, shape or dtype, where integers differ, and where an entry is NaN.
    """
    if [(t.shape, t.dtype) for t in before] != [(t.shape, t.dtype) for t in after]:
        return np.inf
    return max((_change_of(*pair) for pair in zip(before, after, strict=True) if pair[0].numel()), default=0.0)


def _change_of(before: Tensor, after: Tensor) -> float:
    if before.is_complex():
        before, after = torch.view_as_real(before), torch.view_as_real(after)
    if not before.is_floating_point():
        return 0.0 if torch.equal(before, after) else np.inf
    before, after = before.double(), after.double()
    change = float((after - before).abs().masked_fill(before == after, 0.0).max())  # equal infinities differ by NaN
    scale = float(before.abs().masked_fill(before.isinf(), 0.0).max())
    return np.inf if np.isnan(change) else change / (scale or 1.0)


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
        starts=group.starts,
    )
