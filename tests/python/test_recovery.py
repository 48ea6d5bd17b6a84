from __future__ import annotations

import shutil

import pytest
import torch
from nets import images, tiny_vit
from torch import nn

import mpcore
from mpcore.models.recipe import Recipe
from mpcore.models.shuffle import ShuffledBatches
from mpcore.records import Certificate, EvalTable
from mpcore.recovery import add_to_evaluation

VIT = {"channels": 1, "size": 8}
RECIPE = Recipe(solver="none", sequence="parallel", permute_rounds=4, certify_samples=16)


def sharp_vit(seed: int = 0) -> nn.Module:
    """A vision transformer that is sure of its answers, so that there is something to lose and to recover."""
    net = tiny_vit(seed)
    with torch.no_grad():
        net.head.weight.mul_(30)
    return net


def training(seed: int = 3) -> ShuffledBatches:
    return ShuffledBatches(images(256, seed=seed, **VIT), batch_size=16, seed=0)


def held_out() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(32, seed=8, **VIT), torch.arange(32) % 10)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    pruned = mpcore.prune(
        sharp_vit(), RECIPE, calibration=[images(16, **VIT)], evaluation=held_out(), out=folder, progress=False
    )
    distilled = mpcore.distill(pruned, training(), epochs=3, lr=1e-3, evaluation=held_out(), progress=False)
    return pruned, distilled


def test_the_student_is_nearer_to_the_teacher_and_keeps_its_masks(runs):
    _, distilled = runs
    rows = {row.model: row for row in EvalTable.read(distilled.folder / "eval.json").rows}
    assert list(rows) == ["dense", "pruned", "distilled"]
    assert rows["distilled"].kl < 0.7 * rows["pruned"].kl
    mpcore.check_mask(distilled.model.blocks[0].mlp.fc1.weight.detach().numpy() != 0, "2:4")


def test_a_distilled_run_verifies_and_its_certificate_is_about_the_student(runs):
    _, distilled = runs
    report = mpcore.verify(distilled.folder)
    assert report.problems == ()
    certificate = Certificate.read(distilled.folder / "certificate-student.json")
    assert [layer.name for layer in certificate.layers] == ["pruning", "distillation"]
    assert certificate.samples == 16


def test_loading_the_folder_gives_the_student(runs):
    _, distilled = runs
    student = mpcore.load(distilled.folder, sharp_vit(seed=9))
    inputs = images(4, **VIT)
    assert torch.equal(student(inputs), distilled.model(inputs))


def test_distilling_from_the_folder_alone_gives_the_same_student(runs, tmp_path):
    pruned, distilled = runs
    again = mpcore.distill(pruned.folder, training(), model=sharp_vit(seed=5), epochs=3, lr=1e-3, progress=False)
    inputs = images(4, **VIT)
    assert torch.equal(again.model(inputs), distilled.model(inputs))


def test_another_model_joins_the_evaluation_once(runs):
    _, distilled = runs
    for _ in range(2):
        add_to_evaluation(distilled, "dense-continued", sharp_vit(), held_out())
    names = [row.model for row in EvalTable.read(distilled.folder / "eval.json").rows]
    assert names == ["dense", "pruned", "distilled", "dense-continued"]
    assert mpcore.verify(distilled.folder).ok


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished run to distil"):
        mpcore.distill(tmp_path, training(), model=sharp_vit())


def test_a_setting_out_of_range_is_refused_by_name(runs):
    with pytest.raises(ValueError, match=r"lr = -1\.0 is out of range"):
        mpcore.distill(runs[0], training(), lr=-1.0)


@pytest.fixture
def pruned(tmp_path):
    """A finished run with dense and pruned model in eval.json, quickly made."""
    recipe = Recipe(solver="none", sequence="parallel", permute=False, certify_samples=16)
    data = {"calibration": [images(16, **VIT)], "evaluation": held_out()}
    return mpcore.prune(sharp_vit(), recipe, **data, out=tmp_path / "run", progress=False)


def one_epoch(pruned, train=None, **settings):
    train = train or ShuffledBatches(images(32, seed=3, **VIT), batch_size=16, seed=0)
    return mpcore.distill(pruned, train, epochs=1, progress=False, **settings)


def evaluated(folder):
    return [row.model for row in EvalTable.read(folder / "eval.json").rows]


def test_the_rows_of_a_student_go_when_another_one_replaces_it(pruned):
    run = one_epoch(pruned, lr=1e-3, evaluation=held_out())
    add_to_evaluation(run, "dense-continued", sharp_vit(), held_out())
    one_epoch(pruned, lr=1e-3)
    assert evaluated(run.folder) == ["dense", "pruned", "distilled", "dense-continued"], "the very same student"
    one_epoch(pruned, lr=2e-3, resume=False)
    assert evaluated(run.folder) == ["dense", "pruned"]
    assert mpcore.verify(run.folder).ok


@pytest.mark.parametrize("writes_before_death", range(6))
def test_a_distillation_that_dies_while_it_replaces_a_student_can_be_repeated(pruned, monkeypatch, writes_before_death):
    from mpcore import recovery, serialise

    one_epoch(pruned, lr=1e-3, evaluation=held_out())
    left = [writes_before_death]
    save, write = recovery.save_model, serialise.Record.write

    def dies(done):
        def call(*arguments):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            done(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "save_model", dies(save))
        patch.setattr(serialise.Record, "write", dies(write))
        with pytest.raises(KeyboardInterrupt):
            one_epoch(pruned, lr=2e-3, resume=False)
    one_epoch(pruned, lr=2e-3)
    assert evaluated(pruned.folder) == ["dense", "pruned"]
    assert mpcore.verify(pruned.folder).ok


def test_what_a_student_is_certified_on_does_not_depend_on_the_callers_generators(pruned, tmp_path):
    from torch.utils.data import DataLoader

    certified, model = [], sharp_vit()
    for seed in (1, 2):
        torch.manual_seed(seed)
        folder = shutil.copytree(pruned.folder, tmp_path / str(seed))
        loader = DataLoader(images(64, seed=3, **VIT), batch_size=4, shuffle=True)
        mpcore.distill(folder, loader, model=model, epochs=1, lr=1e-3, progress=False)
        certified.append((folder / "certificate-student.json").read_text())
        drawn = torch.rand(())
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.rand(())), "the caller's generator is where it was"
    assert certified[0] == certified[1]
