from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import TinyConvNet, images

import mpcore
from mpcore.models.batches import materialise
from mpcore.models.calibrate import calibrate
from mpcore.models.inventory import inventory
from mpcore.models.macs import macs
from mpcore.models.recipe import Recipe
from mpcore.models.sensitivity import input_norms, measure_sensitivities
from mpcore.records import Pattern

QUICK = {"permute_rounds": 4, "certify_samples": 8, "solver": "lstsq"}
BATCHES = [images(12, seed=1), images(12, seed=2)]


@pytest.fixture(scope="module")
def measured():
    model, recipe = TinyConvNet(), Recipe(pattern="8:16", budget="knapsack", **QUICK)
    layers = inventory(model).layers
    batches = materialise(BATCHES, "calibration")
    stats = calibrate(model, [layer.name for layer in layers if layer.prunable], batches)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_sensitivities(model, layers, stats, batches, recipe)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return model, found, stats


def test_every_layer_gets_the_candidates_that_fit_it(measured):
    _, found, _ = measured
    wide = {Pattern(text) for text in ("1:4", "2:4", "3:4", "8:16", "12:16")}
    assert set(found["blocks.0._project_conv"].errors) == wide
    assert found["blocks.0._project_conv"].reference == Pattern("8:16")
    assert set(found["blocks.0._expand_conv"].errors) == {Pattern("1:4"), Pattern("2:4"), Pattern("3:4")}
    assert found["blocks.0._expand_conv"].reference == Pattern("2:4")  # 8 channels do not take groups of 16
    assert "stem" not in found
    assert "fc" not in found


def test_costs_are_kl_at_the_reference_and_grow_with_the_error(measured):
    for sensitivity in measured[1].values():
        costs = sensitivity.costs()
        assert costs[sensitivity.reference] == pytest.approx(sensitivity.kl)
        assert sensitivity.kl > 0
        assert sensitivity.gain > 0
        assert costs[Pattern("1:4")] > costs[Pattern("2:4")] > costs[Pattern("3:4")] > 0


def test_input_norms_are_those_of_the_moments(measured):
    stats = measured[2]
    for name, norm in input_norms(stats).items():
        assert norm**2 == pytest.approx(float(stats[name].square.sum()))


@pytest.mark.parametrize("unit", ["macs", "weights"])
def test_a_knapsack_run_takes_no_more_than_the_uniform_one(unit, tmp_path):
    total = {}
    for budget in ("uniform", "knapsack"):
        recipe = Recipe(budget=budget, unit=unit, **QUICK)
        run = mpcore.prune(TinyConvNet(), recipe, calibration=BATCHES, out=tmp_path / budget, progress=False)
        assert run.report.budget.method == budget
        assert mpcore.verify(run.folder).ok
        counted = macs(run.model, images(1))
        weights = sum(np.count_nonzero(p.detach().numpy()) for p in run.model.parameters() if p.ndim > 1)
        total[budget] = counted.total if unit == "macs" else weights
        patterns = {str(layer.pattern) for layer in run.report.budget.layers if layer.pattern is not None}
    assert total["knapsack"] <= total["uniform"]
    assert len(patterns) > 1


def test_the_budgets_from_spectra_run_at_about_the_uniform_total_and_differ():
    densities = {}
    for budget in ("seb", "seb-corrected", "rmt-2025"):
        recipe = Recipe(budget=budget, pattern="4:8", **QUICK)
        run = mpcore.prune(TinyConvNet(), recipe, calibration=BATCHES, progress=False)
        densities[budget] = [layer.density for layer in run.report.budget.layers]
        assert run.report.budget.density == pytest.approx(0.6, abs=0.15)
    assert len({tuple(found) for found in densities.values()}) == 3


def test_inputs_that_are_no_tensor_count_weights():
    class Named(TinyConvNet):
        def forward(self, pixels):
            return super().forward(pixels)

    data = [{"pixels": BATCHES[0]}]
    with pytest.raises(ValueError, match="unit = 'macs' needs inputs that are one tensor"):
        mpcore.prune(Named(), Recipe(budget="knapsack", **QUICK), calibration=data, progress=False)
    run = mpcore.prune(Named(), Recipe(budget="knapsack", unit="weights", **QUICK), calibration=data, progress=False)
    assert run.report.budget.method == "knapsack"
