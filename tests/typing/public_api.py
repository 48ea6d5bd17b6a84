"""Every public name in use, as a type checker sees a user's program; never run. See tests/python/test_typing.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from typing_extensions import assert_type

import mpcore
from mpcore.certify import certify, margin_stable, wilson
from mpcore.compensate import admm, lstsq, output_error, sparsegpt
from mpcore.models.accelerate import Accelerated
from mpcore.models.compact import load_compact, save_compact
from mpcore.models.distill import DistillRun
from mpcore.models.hf import load_pretrained, save_pretrained
from mpcore.models.macs import macs
from mpcore.models.onnx_file import to_onnx
from mpcore.prunerun import PruneRun
from mpcore.records import (
    Budget,
    Certificate,
    EvalReport,
    EvalTable,
    LayerInfo,
    LayerInventory,
    MaskPlan,
    Problem,
    VerifyReport,
)
from mpcore.report import render
from mpcore.spectra.diagnose import diagnose

Matrix = npt.NDArray[np.float64]


def spectra(weight: Matrix, checkpoint: Path) -> mpcore.SpectraReport:
    """Fits, values and the laws."""
    fit = mpcore.fit_edge(weight, alpha=0.05, return_values=True)
    assert_type(fit, mpcore.EdgeFit)
    assert_type(fit.edge, float)
    assert_type(fit.edge_ci, tuple[float, float])
    assert_type(fit.gof.p_value, float)
    assert_type(fit.n_spikes_whitened, int | None)
    strengths = [spike.strength for spike in fit.spikes]
    assert_type(strengths, list[float])
    again = mpcore.EdgeFit.from_json(fit.to_json())
    assert_type(again, mpcore.EdgeFit)
    density: Matrix = fit.pdf(np.linspace(0, 1))
    print(density, fit.cdf(0.5), fit.ppf(0.5), fit.shrink(weight).shape, fit.plot().get_title())
    report = mpcore.fit_edges(checkpoint, threads=2, alpha=0.01)
    for name, layer in report.items():
        print(name, layer.bulk_fraction, report.skipped)
    rows = report.rows()
    print(rows[0]["edge"], mpcore.svdvals(weight)[0], mpcore.svd(weight, 3).U.shape)
    assert_type(mpcore.mp.pdf(1.0, 0.5), float)
    assert_type(mpcore.mp.pdf(density, 0.5), Matrix)
    print(mpcore.mp.tracy_widom_ppf(0.99), diagnose(weight).kurtosis)
    return report


def masks(score: Matrix, gram: Matrix) -> mpcore.Packed:
    """Masks, permutations, solvers, packed weights."""
    pattern = mpcore.Pattern("2:4")
    assert_type(pattern.keep, int)
    found = mpcore.optimize_permutation(score, pattern, max_rounds=10, bound="row")
    assert_type(found, mpcore.PermutationResult)
    assert_type(found.gap, float)
    mask = mpcore.nm_mask(score[:, found.order], pattern)
    mpcore.check_mask(mask, (2, 4))
    both = mpcore.transposable_mask(score, "2:4")
    quadratic = mpcore.quadratic_mask(score, gram, "2:4")
    refitted = lstsq(score, gram, mask | both)
    error = output_error(score, admm(score, gram, "2:4", steps=20), gram)
    assert_type(error, float)
    packed = mpcore.pack(refitted, "2:4", mask=mask)
    packed.save("packed.safetensors")
    print(quadratic.shape, sparsegpt(score, gram, pattern).dtype, mpcore.nm_linear(packed, score, activation="gelu"))
    return mpcore.Packed.load("packed.safetensors")


def pruning(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], folder: Path) -> PruneRun:
    """The main job, from the inventory to the report."""
    layers = mpcore.inventory(model, skip=("head",))
    assert_type(layers, LayerInventory)
    assert_type(layers.prunable(), tuple[LayerInfo, ...])
    recipe = mpcore.Recipe(pattern={"*": "2:4", "head": "dense"}, solver="lstsq")
    run = mpcore.prune(model, recipe, calibration=batches, out=folder, evaluation=batches, seed=1)
    assert_type(run, PruneRun)
    assert_type(run.model, nn.Module)
    assert_type(run.report.certificate, Certificate)
    assert_type(run.report.plan, MaskPlan)
    assert_type(run.report.budget, Budget)
    assert_type(run.report.evaluation, EvalTable | None)
    student = mpcore.distill(run, batches, epochs=1, lr=1e-4)
    assert_type(student, DistillRun)
    print([entry.loss for entry in student.history.entries], student.folder)
    table = mpcore.evaluate(student.model, batches, teacher=model)
    assert_type(table, EvalReport)
    assert_type(table.top1_ci, tuple[float, float] | None)
    checked = mpcore.verify(folder)
    assert_type(checked, VerifyReport)
    assert_type(checked.problems, tuple[Problem, ...])
    assert_type(mpcore.prune_checkpoint("model.safetensors.index.json", "2:4", out="streamed"), Path)
    print(render(folder).name)
    return run


def shipping(folder: Path, example: torch.Tensor, masks: dict[str, torch.Tensor]) -> Accelerated:
    """Files out, and sparse layers."""
    model = mpcore.load(folder, which="student")
    assert_type(model, nn.Module)
    save_compact(model, masks, "compact.safetensors")
    load_compact(model, "compact.safetensors")
    assert_type(to_onnx(model, example, "model.onnx"), Path)
    network, source = load_pretrained("folder")
    print(network, source, save_pretrained(folder, "out"), macs(model, example).layers[0].dense)
    fast = mpcore.accelerate(model, example, backend="cpu")
    assert_type(fast, Accelerated)
    assert_type(fast.difference, float)
    return fast


def certificates(dense: Matrix, pruned: Matrix) -> Certificate:
    """Certificates of logits, and an error of the numerics."""
    try:
        found = certify(dense, pruned, labels=np.zeros(len(dense), dtype=np.int64))
    except (ValueError, mpcore.ConvergenceError) as error:
        raise SystemExit(str(error)) from None
    assert_type(found.stable, int)
    print(margin_stable(np.array(found.margin), np.array(found.eta)), wilson(9, 10), mpcore.__version__)
    return found
