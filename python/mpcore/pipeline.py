"""The stages in order. Each reads the records before it and writes one of its own, so an interrupted run resumes."""

from __future__ import annotations

import copy
import json
import math
import platform
from collections.abc import Iterable
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from mpcore import budget as budgets
from mpcore._native import __version__
from mpcore.checkpoint import save_tensors
from mpcore.folder import OF_DISTILLATION, PROGRESS, RunFolder, check_sealed, hashes, read_json, write_text
from mpcore.models import plans, tome
from mpcore.models.apply import as_matrix, from_matrix, layer_of
from mpcore.models.batches import digest, first, materialise, split
from mpcore.models.calibrate import CalibrationStats, calibrate
from mpcore.models.certificate import REPEATED, LogitTrail
from mpcore.models.evaluate import check_labels, check_module, compare
from mpcore.models.export import architecture_sha256, load, save_model, state_sha256
from mpcore.models.inventory import check_copyable, inventory
from mpcore.models.macs import macs
from mpcore.models.memory import memory_kept
from mpcore.models.permutation import find_groups, permute_channels
from mpcore.models.recipe import Recipe
from mpcore.models.segments import Unsound
from mpcore.models.sensitivity import Sensitivity, input_norms, measure_sensitivities
from mpcore.models.sequence import Pruned, Walk, prune_layers, settle
from mpcore.models.trainstate import STATE
from mpcore.progress import note, progress_bar
from mpcore.prunerun import PruneReport, PruneRun
from mpcore.records import (
    Budget,
    Certificate,
    EvalTable,
    LayerInventory,
    Manifest,
    MaskPlan,
    Pattern,
    PermutedGroup,
    Record,
    from_plain,
    to_plain,
)
from mpcore.spectra import SpectraReport, fit_edges

WHOLE = f"{PROGRESS}/whole.json"
"""There in an interrupted run whose pruned model was found to be no chain of segments."""


@memory_kept()
def prune(
    model: nn.Module,
    recipe: Recipe | str | PathLike[str],
    *,
    calibration: Iterable[Any],
    out: str | PathLike[str] | None = None,
    evaluation: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    source: dict[str, Any] | None = None,
) -> PruneRun:
    """Measure, budget, permute, prune, compensate and certify a model.

    Args:
        model: left untouched; the run holds a pruned copy.
        recipe: a Recipe, the name of one in the package, or the path of a TOML file.
        calibration: batches ``inputs`` or ``(inputs, targets)``; never the images you evaluate on.
        out: the run folder; it may exist if it holds the same run, which is then resumed. None: a temporary one.
            Order and size of the batches are part of a run: a DataLoader that shuffles makes another one.
        evaluation: labelled batches; dense and pruned model are compared on them.
        seed: of everything random.
        progress: bars on stderr.
        source: how to build the model again, kept for :func:`mpcore.load`, e.g. ``{"timm": "vit_small_patch16_224"}``.

    Returns:
        The run; ``run.model`` is in evaluation mode.

    Raises:
        TypeError: if ``model`` is not an nn.Module.
        ValueError: for bad data, a recipe that prunes nothing, or a folder that holds something else.

    Example:
        >>> import torch, mpcore
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> run = mpcore.prune(net, "default", calibration=[torch.randn(64, 8)], progress=False)
        >>> float((run.model[0].weight == 0).double().mean())
        0.5
    """
    check_module(model, "model")
    recipe = Recipe.of(recipe)
    batches = materialise(calibration, "calibration")
    held_out = None if evaluation is None else materialise(evaluation, "evaluation")
    fingerprint = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "model_sha256": state_sha256(model),
        "architecture_sha256": architecture_sha256(model),
        "calibration_sha256": digest(batches),
        "evaluation_sha256": None if held_out is None else digest(held_out),
        "version": __version__,
    }
    folder = RunFolder(out, fingerprint)
    try:
        stages = _Stages(model, recipe, batches, held_out, folder, seed=seed, progress=progress, source=source or {})
        return stages.finished_run() if folder.finished else stages.run()
    except Exception:
        folder.forsake()
        raise
    finally:
        folder.release()


class _Stages:
    """One run; the methods are the stages in the order of docs/architecture.md, section 2."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        batches: list[Any],
        held_out: list[Any] | None,
        folder: RunFolder,
        *,
        seed: int,
        progress: bool,
        source: dict[str, Any],
    ) -> None:
        check_copyable(model)
        self.given, self.dense = model, copy.deepcopy(model).eval()
        self.recipe, self.batches, self.held_out, self.folder = recipe, batches, held_out, folder
        self.seed, self.progress, self.source = seed, progress, source

    def run(self) -> PruneRun:
        if self.recipe.tome:
            self.merge_tokens(copy.deepcopy(self.dense))  # refused now rather than after the work
        check_labels(self.dense, calibration=self.batches, evaluation=self.held_out or [])
        stats = self.calibrate()
        trail = LogitTrail(self.dense, self.batches, self.recipe.certify_samples)
        layers = self.folder.once("inventory.json", LayerInventory, lambda: self.inventory(stats))
        spectra = self.spectra()
        fitted = self.with_spectra(layers, spectra)
        budget = self.folder.once("budget.json", Budget, lambda: self.budget(fitted, spectra, stats))
        patterns = {layer.name: layer.pattern for layer in budget.layers if layer.pattern is not None}
        if not patterns:
            largest = sorted(layers.layers, key=lambda layer: -math.prod(layer.shape))[:3]
            left = {layer.name: layer.reason for layer in budget.layers}
            reasons = "; ".join(f"{layer.name}: {left.get(layer.name, layer.reason)}" for layer in largest)
            raise ValueError(f"recipe: leaves nothing to prune ({reasons})")
        groups, refused = self.permute(patterns, stats, trail)
        # Moments were taken before the channels moved; order of the calls and BatchNorms stay.
        pruned, results = self.prune_layers(patterns, stats, trail)
        plan = self.write_plan(groups, refused, results, stats)
        masks = {name: from_matrix(result.mask, result.plan.shape) for name, result in results.items()}
        save_model(self.dense, {}, self.folder.path / "dense.safetensors")
        save_model(pruned, masks, self.folder.path / "model.safetensors")
        if self.recipe.tome:
            self.merge_tokens(pruned)
            trail.step("token merging", pruned)
        certificate = self.certify(trail)
        evaluation = self.evaluate(pruned)
        self.seal(patterns)
        report = PruneReport(layers, spectra, budget, plan, certificate, evaluation)
        return PruneRun(pruned, self.folder.path, report, self.folder)

    def finished_run(self) -> PruneRun:
        """Load what a finished folder holds; a distillation that was interrupted since may have begun to renew it."""
        path = self.folder.path
        check_sealed(path, but=OF_DISTILLATION if (path / STATE).exists() else ())
        spectra = SpectraReport.read(path / "spectra.json")
        table = EvalTable.read(path / "eval.json") if (path / "eval.json").exists() else None
        report = PruneReport(
            LayerInventory.read(path / "inventory.json"),
            spectra,
            Budget.read(path / "budget.json"),
            MaskPlan.read(path / "plan.json"),
            Certificate.read(path / "certificate.json"),
            table,
        )
        return PruneRun(load(path, self.dense, which="model"), path, report, self.folder)

    def found(self) -> LayerInventory:
        # Of the given model: a copy unties weights that share their memory without being one parameter.
        return inventory(self.given, skip=self.recipe.skip, named=self.recipe.asked_for)

    def calibrate(self) -> CalibrationStats:
        names = [layer.name for layer in self.found().prunable()]
        with progress_bar(self.progress, "calibrate", 1) as advance:
            stats = calibrate(self.dense, names, self.batches, positions=self.recipe.positions, seed=self.seed)
            advance(f"{len(stats)} layers")
        save_tensors(self.folder.path / "calibration.safetensors", stats.tensors())
        if self.recipe.solver != "none" and (told := stats.few_rows()):
            note(self.progress, f"prune: {told}; more calibration samples keep more of the model")
        return stats

    def inventory(self, stats: CalibrationStats) -> Record:
        """Layers whose inputs could not be observed are left alone too."""
        return self.found().leaving(stats.refused)

    def spectra(self) -> SpectraReport:
        def fit() -> Record:
            return fit_edges(self.dense, return_values=True, seed=self.seed, progress=self.progress)

        found: SpectraReport = self.folder.once("spectra.json", SpectraReport, fit)
        return found

    def with_spectra(self, layers: LayerInventory, spectra: SpectraReport) -> LayerInventory:
        """Budgets that weigh spectra leave a layer dense that has none."""
        if isinstance(self.recipe.pattern, dict) or self.recipe.budget in ("uniform", "knapsack"):
            return layers
        without = {name: f"it has no spectrum to weigh: {why}" for name, why in spectra.skipped.items()}
        return layers.leaving(without)

    def budget(self, layers: LayerInventory, spectra: SpectraReport, stats: CalibrationStats) -> Record:
        recipe = self.recipe
        if isinstance(recipe.pattern, dict):
            return budgets.from_table(layers.layers, recipe.pattern)
        if recipe.budget == "uniform":
            return budgets.uniform(layers.layers, Pattern(recipe.pattern))
        if recipe.budget == "knapsack":
            costs = {name: found.costs() for name, found in self.sensitivities(layers, stats).items()}
            return budgets.knapsack(layers.layers, costs, recipe.pattern, sizes=self.sizes())
        if recipe.budget == "rmt-2025":
            errors = {name: fit.gof.ks for name, fit in spectra.items() if fit.gof.ks is not None}
            bulk = {name: fit.bulk_fraction for name, fit in spectra.items()}
            return budgets.rmt2025(layers.layers, errors, bulk, recipe.pattern)
        edges = {name: fit.sigma_plus for name, fit in spectra.items()}
        weights = {layer.name: as_matrix(layer_of(self.dense, layer.name).weight) for layer in layers.prunable()}
        if recipe.budget == "seb":
            hill = {name: budgets.hill_exponent(spectra[name].values) for name in weights}
            return budgets.seb(layers.layers, edges, weights, recipe.pattern, hill=hill)
        found = self.sensitivities(layers, stats)
        signal = budgets.corrected_signal(
            {name: spectra[name].sigma_sq ** 0.5 for name in found},
            input_norms(stats),
            {name: sensitivity.gain for name, sensitivity in found.items()},
        )
        return budgets.seb(layers.layers, edges, weights, recipe.pattern, signal=signal)

    def sensitivities(self, layers: LayerInventory, stats: CalibrationStats) -> dict[str, Sensitivity]:
        with progress_bar(self.progress, "sensitivities", len(stats)) as advance:
            return measure_sensitivities(
                self.dense, layers.layers, stats, self.batches, self.recipe, seed=self.seed, progress=advance
            )

    def sizes(self) -> dict[str, int] | None:
        """Multiply-accumulates of every layer, or None to count weights."""
        if self.recipe.unit == "weights":
            return None
        sample = first(split(self.batches[0])[0], 1)
        if not isinstance(sample, torch.Tensor):
            raise ValueError("recipe: unit = 'macs' needs inputs that are one tensor; use unit = 'weights'")
        counted = macs(self.dense, sample, patterns={})
        return {layer.name: layer.dense for layer in counted.layers}

    def permute(
        self, patterns: dict[str, Pattern], stats: CalibrationStats, trail: LogitTrail
    ) -> tuple[tuple[PermutedGroup, ...], dict[str, str]]:
        """Fold channel orders into the dense model; a resumed run folds the stored ones.

        Each order was checked on two samples. On all of the trail's the folded network must still be the given one, or
        no order is kept: another sample may take another way through the network.
        """
        if not self.recipe.permute:
            return (), {}
        name = f"{PROGRESS}/permutation.json"
        sample = first(split(self.batches[0])[0], 2)
        if path := self.folder.kept(name):
            data = json.loads(path.read_text(encoding="utf-8"))
            groups = tuple(from_plain(PermutedGroup, entry, "permutation") for entry in data["groups"])
            found, _ = find_groups(self.dense, sample, self.recipe)
            by_consumers = {(group.consumers, group.starts): group for group in found}
            for done in groups:
                plans.fold(self.dense, by_consumers[done.consumers, done.starts], done.order)
            trail.begin(trail.logits(self.dense))
            return groups, data["refused"]
        with progress_bar(self.progress, "permute") as advance:
            groups, refused = permute_channels(
                self.dense, patterns, stats, self.recipe, sample, seed=self.seed, progress=advance
            )
        logits = trail.logits(self.dense)
        if (change := trail.change(logits)) <= REPEATED:
            trail.begin(logits)
        else:
            self.dense = copy.deepcopy(self.given).eval()
            told = f"the orders of all groups together changed logits of the calibration samples by {change:.1e}"
            refused |= {name: told for group in groups for name in group.consumers}
            groups = ()
        write_text(self.folder.path / name, json.dumps({"groups": to_plain(groups), "refused": refused}))
        self.folder.vouch(name)
        return groups, refused

    def prune_layers(
        self, patterns: dict[str, Pattern], stats: CalibrationStats, trail: LogitTrail
    ) -> tuple[nn.Module, dict[str, Pruned]]:
        """By segments; again by whole passes, from the start, if the pruned model is no chain of them."""
        if self.folder.kept(WHOLE) is None:
            try:
                return self.prune_once(patterns, stats, trail, whole=False)
            except Unsound as error:
                write_text(self.folder.path / WHOLE, json.dumps({"reason": str(error)}))
                self.folder.vouch(WHOLE)
        reason = read_json(self.folder.path / WHOLE)["reason"]
        told = f"the pruned network is no chain of its blocks ({reason})"
        note(self.progress, f"prune: {told}, so every layer is done again, and each runs the whole network: slower")
        return self.prune_once(patterns, stats, trail, whole=True)

    def prune_once(
        self, patterns: dict[str, Pattern], stats: CalibrationStats, trail: LogitTrail, *, whole: bool
    ) -> tuple[nn.Module, dict[str, Pruned]]:
        pruned = copy.deepcopy(self.dense).eval()
        trail.begin(trail.dense)
        walk = Walk(self.dense, pruned, patterns, stats, self.batches, self.recipe, seed=self.seed, whole=whole)
        if not walk.segments and not whole:
            note(
                self.progress,
                "prune: no chain of blocks found in the network, so each layer runs the whole of it: slower",
            )
        trail.follow(pruned, walk.segments, walk.stages)
        number = {name: index + whole * len(walk.order) for index, name in enumerate(walk.order)}

        def stored(name: str) -> Pruned | None:
            if (found := self.folder.stored_layer(number[name])) is None:
                return None
            plan, tensors = found
            return Pruned(plan, tensors["weight"], tensors["mask"], tensors.get("shift"))

        with progress_bar(self.progress, "prune", len(walk.order)) as advance:

            def finished(name: str, result: Pruned) -> None:
                tensors = {"weight": result.weight, "mask": result.mask}
                if result.shift is not None:
                    tensors["shift"] = result.shift
                if self.folder.stored_layer(number[name]) is None:
                    self.folder.store_layer(number[name], result.plan, tensors)
                trail.step(name, pruned)
                advance(name)

            results = prune_layers(walk, stored=stored, finished=finished)
        settle(trail, walk)
        return pruned, results

    def write_plan(
        self,
        groups: tuple[PermutedGroup, ...],
        refused: dict[str, str],
        results: dict[str, Pruned],
        stats: CalibrationStats,
    ) -> MaskPlan:
        recipe, order = self.recipe, [name for name in stats if name in results]
        layers = tuple(results[name].plan for name in order)
        plan = MaskPlan(recipe.score, recipe.solver, recipe.sequence, groups, layers, refused)
        masks = {name: from_matrix(results[name].mask, results[name].plan.shape).numpy() for name in order}
        save_tensors(self.folder.path / "masks.safetensors", masks)
        plan.write(self.folder.path / "plan.json")
        return plan

    def merge_tokens(self, model: nn.Module) -> None:
        try:
            tome.apply(model, self.recipe.tome)
        except (TypeError, ValueError) as error:
            raise ValueError(f"recipe: tome = {self.recipe.tome}, but {error}") from None

    def certify(self, trail: LogitTrail) -> Certificate:
        certificate = trail.certificate(self.folder.path / "model.safetensors", seed=self.seed)
        certificate.write(self.folder.path / "certificate.json")
        return certificate

    def evaluate(self, pruned: nn.Module) -> EvalTable | None:
        if self.held_out is None:
            return None
        table = compare({"dense": self.dense, "pruned": pruned}, self.held_out, progress=self.progress)
        table.write(self.folder.path / "eval.json")
        return table

    def seal(self, patterns: dict[str, Pattern]) -> None:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        manifest = Manifest(
            version=__version__,
            seed=self.seed,
            recipe=self.recipe.to_dict(),
            source=self.source,
            patterns=patterns,
            files=hashes(self.folder.path),
            versions=versions,
        )
        self.folder.seal(manifest)
