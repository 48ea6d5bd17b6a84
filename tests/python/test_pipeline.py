from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nets import TinyConvNet, images, tiny_vit
from torch import nn

import mpcore
from mpcore import pipeline
from mpcore.models.recipe import Recipe
from mpcore.records import EvalTable, MaskPlan

QUICK = {"permute_rounds": 8, "certify_samples": 16}


def labelled(count: int, seeds: range, **kind: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(count, seed=seed, **kind), torch.arange(count) % 10) for seed in seeds]


VIT = {"channels": 1, "size": 8}


def prune_vit(out=None, **changes):
    recipe = changes.pop("recipe", Recipe(**QUICK))
    data = {"calibration": labelled(16, range(2), **VIT), "evaluation": labelled(8, range(5, 7), **VIT)}
    return mpcore.prune(tiny_vit(), recipe, out=out, progress=False, **{**data, **changes})


def contents(folder) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return prune_vit(tmp_path_factory.mktemp("runs") / "run")


def test_a_run_leaves_exactly_the_files_of_the_architecture(finished):
    assert sorted(entry.name for entry in finished.folder.iterdir()) == [
        "budget.json",
        "calibration.safetensors",
        "certificate.json",
        "dense.safetensors",
        "eval.json",
        "inventory.json",
        "manifest.json",
        "masks.safetensors",
        "model.safetensors",
        "plan.json",
        "run.json",
        "spectra.json",
    ]


def test_a_finished_run_verifies(finished):
    report = mpcore.verify(finished.folder)
    assert report.problems == ()
    assert report.ok


def test_every_prunable_layer_holds_its_pattern(finished):
    names = [layer.name for layer in finished.report.inventory.prunable()]
    assert len(names) == 8
    for name in names:
        weight = finished.model.get_submodule(name).weight.detach().numpy()
        mpcore.check_mask(weight != 0, "2:4")
        assert not np.signbit(weight[weight == 0]).any()


def test_the_certificate_never_counts_a_label_that_flipped(finished):
    certificate = finished.report.certificate
    assert certificate.samples == 16
    assert certificate.stable_path <= certificate.stable <= certificate.unchanged
    assert [layer.name for layer in certificate.layers] == [layer.name for layer in finished.report.plan.layers]


def test_permutations_do_not_change_the_dense_model(finished):
    assert finished.report.plan.groups
    assert all(group.output_change <= 1e-9 for group in finished.report.plan.groups)
    assert all(group.kept >= group.kept_identity for group in finished.report.plan.groups)
    dense = mpcore.load(finished.folder, tiny_vit(seed=1), which="dense").eval()
    inputs = images(4, **VIT)
    torch.testing.assert_close(dense(inputs), tiny_vit()(inputs), rtol=1e-4, atol=1e-5)


def test_the_given_model_is_left_untouched():
    model = tiny_vit()
    before = pipeline.state_sha256(model)
    mpcore.prune(model, Recipe(**QUICK), calibration=[images(8, **VIT)], progress=False)
    assert pipeline.state_sha256(model) == before


def test_a_finished_folder_is_loaded_rather_than_run_again(finished):
    before = contents(finished.folder)
    again = prune_vit(finished.folder)
    assert contents(finished.folder) == before
    assert pipeline.state_sha256(again.model) == pipeline.state_sha256(finished.model)
    assert again.report == finished.report


@pytest.mark.parametrize("stop_after", ["permute", "prune_layers", "certify"])
def test_an_interrupted_run_resumes_to_the_same_bytes(finished, tmp_path, monkeypatch, stop_after):
    kept = getattr(pipeline._Stages, stop_after)
    solved = []

    def interrupted(self, *args):
        if stop_after == "prune_layers":
            store = self.folder.store_layer

            def store_and_stop(*layer):
                store(*layer)
                solved.append(layer)
                if len(solved) == 3:
                    raise KeyboardInterrupt

            self.folder.store_layer = store_and_stop
        else:
            raise KeyboardInterrupt
        return kept(self, *args)

    monkeypatch.setattr(pipeline._Stages, stop_after, interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_vit(tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "manifest.json").exists()
    prune_vit(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(finished.folder)


def test_a_folder_of_another_seed_is_refused(finished):
    with pytest.raises(ValueError, match=r"holds another run \(seed was 0, now 7\)"):
        prune_vit(finished.folder, seed=7)


@pytest.mark.parametrize("solver", ["none", "lstsq", "sparsegpt", "admm"])
def test_every_solver_prunes_a_convolutional_network(solver):
    recipe = Recipe(solver=solver, **QUICK)
    run = mpcore.prune(TinyConvNet(), recipe, calibration=[images(8)], progress=False)
    plan = {layer.name: layer for layer in run.report.plan.layers}
    assert set(plan) == {
        *(f"blocks.{i}.{part}" for i in (0, 1) for part in ("_expand_conv", "_project_conv")),
        "tail.0",
        "tail.3",
    }
    weight = run.model.tail[0].weight.detach().permute(0, 2, 3, 1).numpy()
    mpcore.check_mask(weight != 0, "2:4")
    if solver != "none":
        assert all(layer.relative_error <= layer.mask_only_error * (1 + 1e-6) for layer in plan.values())


def test_compensation_beats_magnitude_on_the_network_output():
    def error(recipe):
        net, inputs = TinyConvNet(), images(32, seed=9)
        run = mpcore.prune(net, recipe, calibration=[images(32, seed=s) for s in range(3)], progress=False)
        with torch.inference_mode():
            return float((net(inputs) - run.model(inputs)).square().mean())

    assert error(Recipe(**QUICK)) < 0.5 * error(Recipe.named("magnitude"))


def test_the_mean_output_is_corrected_exactly_where_there_is_a_bias():
    net, batch = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(256, 16).abs()
    run = mpcore.prune(net, Recipe(**QUICK), calibration=[batch], progress=False)
    with torch.inference_mode():
        torch.testing.assert_close(run.model(batch).mean(0), net(batch).mean(0), rtol=1e-4, atol=1e-5)


def test_a_table_of_patterns_and_seb_choose_per_layer():
    table = Recipe(pattern={"*": "2:4", "*.mlp.*": "1:4", "blocks.1.*": "dense"}, **QUICK)
    plan = prune_vit(recipe=table).report.plan
    assert {layer.name: str(layer.pattern) for layer in plan.layers} == {
        "blocks.0.attn.qkv": "2:4",
        "blocks.0.attn.proj": "2:4",
        "blocks.0.mlp.fc1": "1:4",
        "blocks.0.mlp.fc2": "1:4",
    }
    budget = prune_vit(recipe=Recipe(budget="seb", **QUICK)).report.budget
    assert budget.method == "seb"
    assert budget.density == pytest.approx(0.5, abs=0.02)


def test_a_recipe_that_prunes_nothing_says_why():
    with pytest.raises(ValueError, match="leaves nothing to prune"):
        prune_vit(recipe=Recipe(pattern="7:15"))


@pytest.mark.parametrize("sequence", ["asymmetric", "sequential", "parallel"])
def test_inputs_that_hardly_vary_can_be_compensated_for(sequence):
    draw = torch.Generator().manual_seed(0)
    inputs = 1 + 1e-3 * torch.randn(300, 1, generator=draw) * torch.linspace(0.8, 1.2, 8)
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3))
    recipe = Recipe(sequence=sequence, certify_samples=4)
    run = mpcore.prune(net, recipe, calibration=[inputs], progress=False)
    with torch.no_grad():
        before = net(inputs)
        assert (run.model(inputs) - before).abs().max() < 0.1 * (before - before.mean(0)).abs().max()


def test_a_model_that_draws_at_random_in_evaluation_mode_cannot_be_certified():
    class Drops(nn.Sequential):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.2, training=True)

    with pytest.raises(ValueError, match="two passes over the same samples in evaluation mode give logits that differ"):
        mpcore.prune(Drops(nn.Linear(8, 6)), "fast", calibration=[torch.randn(64, 8)], progress=False)


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        ([], ValueError, "calibration: no batches"),
        (torch.randn(4, 1, 8, 8), TypeError, "wrap one batch in a list"),
        ([torch.full((2, 1, 8, 8), torch.nan)], ValueError, "calibration: batch 0 holds NaN or infinity"),
        ([torch.zeros(0, 1, 8, 8)], ValueError, "calibration: batch 0 is empty"),
        ([np.zeros((2, 1, 8, 8))], TypeError, "holds a ndarray, wanted torch tensors"),
    ],
)
def test_bad_calibration_data_is_refused_by_name(calibration, error, message):
    with pytest.raises(error, match=message):
        prune_vit(calibration=calibration)


def test_records_in_the_folder_are_those_of_the_run(finished):
    assert MaskPlan.read(finished.folder / "plan.json") == finished.report.plan
    assert [row.model for row in EvalTable.read(finished.folder / "eval.json").rows] == ["dense", "pruned"]
    assert json.loads((finished.folder / "spectra.json").read_text())


def test_masks_without_compensation_see_the_mean_of_the_inputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6))
    inputs = torch.randn(64, 8) + torch.linspace(-3, 3, 8)
    recipe = mpcore.Recipe(score="quadratic", solver="none", sequence="parallel", permute=False)
    run = mpcore.prune(net, recipe, calibration=[inputs], progress=False)
    gram = (inputs.double().T @ inputs.double() / 64).numpy()
    groups = np.stack([gram[:4, :4], gram[4:, 4:]])
    expected = mpcore.quadratic_mask(net[0].weight.detach().numpy(), groups, "2:4")
    np.testing.assert_array_equal(run.model[0].weight.detach().numpy() != 0, expected)


@pytest.mark.parametrize("budget", ["seb", "seb-corrected", "rmt-2025"])
def test_a_layer_without_a_spectrum_stays_dense_under_a_budget_of_spectra(budget):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.gate, self.zero, self.b = (nn.Linear(16, n) for n in (16, 1, 16, 4))
            nn.init.zeros_(self.zero.weight)

        def forward(self, x):
            x = torch.relu(self.a(x)) * torch.sigmoid(self.gate(x))
            return self.b(x + self.zero(x))

    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    run = mpcore.prune(Gated(), Recipe(budget=budget, **QUICK), calibration=[x], progress=False)
    reasons = {layer.name: layer.reason for layer in run.report.budget.layers if layer.pattern is None}
    assert "no spectrum to weigh" in reasons["gate"]
    assert "no spectrum to weigh" in reasons["zero"]
    assert {"a", "b"} & {layer.name for layer in run.report.plan.layers}


def test_layers_that_are_fed_fewer_rows_than_columns_are_named(capsys):
    net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 8))
    mpcore.prune(net, Recipe(certify_samples=4), calibration=[torch.randn(20, 8)], progress=True)
    assert "prune: 1 layer is fed fewer rows than columns (2: 20 rows for 48 columns); more" in capsys.readouterr().err
    mpcore.prune(net, Recipe(certify_samples=4), calibration=[torch.randn(50, 8)], progress=True)
    assert "fewer rows" not in capsys.readouterr().err
