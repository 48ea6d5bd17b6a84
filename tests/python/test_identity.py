"""What belongs to a run: the network and not only its weights, the labels, the training data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import mpcore
from mpcore.models.batches import digest
from mpcore.models.distill import DistillSettings, train_student
from mpcore.models.export import architecture_sha256
from mpcore.models.hybrid import HybridSettings, hybrid
from mpcore.records import ConvergenceError

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4
RECIPE = mpcore.Recipe(solver="none", permute_rounds=4, certify_samples=16)


def network(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    act = nn.ReLU() if activation is None else activation
    return nn.Sequential(nn.Linear(8, 16), act, nn.Linear(16, 16), act, nn.Linear(16, 4)).eval()


class Scaled(nn.Module):
    """Multiplies by a buffer that no state dict holds."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.ReLU(), nn.Tanh()),
        (nn.GELU(), nn.GELU(approximate="tanh")),
        (Scaled(1.0), Scaled(2.0)),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
    ],
)
def test_a_network_of_the_same_weights_that_computes_something_else_is_another_run(
    one: nn.Module, other: nn.Module, tmp_path: Path
) -> None:
    assert architecture_sha256(network(one)) == architecture_sha256(network(one).train())
    mpcore.prune(network(one), RECIPE, calibration=[X], out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"architecture_sha256 .*modules, their settings or their buffers differ"):
        mpcore.prune(network(other), RECIPE, calibration=[X], out=tmp_path / "run", progress=False)


def test_the_heads_of_an_encoder_belong_to_its_architecture() -> None:
    one, other = (nn.TransformerEncoderLayer(16, heads, 32, batch_first=True) for heads in (1, 4))
    assert architecture_sha256(one) != architecture_sha256(other)
    assert architecture_sha256(one) != architecture_sha256(nn.TransformerEncoderLayer(16, 1, 32, 0.1, nn.GELU()))


def test_other_labels_are_another_run(tmp_path: Path) -> None:
    data = {"calibration": [(X, Y)], "evaluation": [(X, Y)]}
    mpcore.prune(network(), RECIPE, out=tmp_path / "run", progress=False, **data)
    for key, means in (("calibration", "the calibration batches"), ("evaluation", "the evaluation batches")):
        with pytest.raises(ValueError, match=f"{key}_sha256 .*{means} differ in inputs, labels"):
            mpcore.prune(network(), RECIPE, out=tmp_path / "run", progress=False, **{**data, key: [(X, (Y + 1) % 4)]})
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    assert digest([{"ids": a, "mask": b}]) != digest([{"ids": b, "mask": a}]) != digest([{"mask": b, "ids": a}])


def test_a_training_is_not_taken_up_with_other_data_or_masks(tmp_path: Path) -> None:
    run = mpcore.prune(network(), RECIPE, calibration=[X], out=tmp_path / "run", progress=False)
    first = mpcore.distill(run, [(X, Y)], progress=False)
    again = mpcore.distill(run, [(X, Y)], progress=False)
    assert again.history == first.history
    with pytest.raises(ValueError, match="data_sha256 was"):
        mpcore.distill(run, [(X, (Y + 1) % 4)], progress=False)
    student, masks = mpcore.load(run.folder, network(), which="model"), {"0": run.model[0].weight != 0}
    train_student(student, network(), {}, [X], folder=tmp_path, settings=DistillSettings(epochs=1))
    with pytest.raises(ValueError, match="masks_sha256 was"):
        train_student(run.model, network(), masks, [X], folder=tmp_path, settings=DistillSettings(epochs=1))


def test_a_schedule_is_not_taken_up_with_other_data(tmp_path: Path) -> None:
    layers = mpcore.inventory(network()).prunable()
    edges = {layer.name: 1.0 for layer in layers}
    settings = HybridSettings(target=0.1, step=0.1)
    hybrid(network(), layers, edges, [(X, Y)], settings=settings, folder=tmp_path)
    with pytest.raises(ValueError, match="data_sha256 was"):
        hybrid(network(), layers, edges, [(X, (Y + 1) % 4)], settings=settings, folder=tmp_path)


class Root(nn.Module):
    """Finite everywhere, with a slope of NaN where its input is not positive."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x.sqrt(), 0.0)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_gradient_that_is_not_finite_stops_before_it_is_taken(epochs: int, tmp_path: Path) -> None:
    student, teacher = network(Root()), network(nn.Tanh())
    settings = DistillSettings(epochs=epochs)
    with pytest.raises(ConvergenceError, match="the gradient is nan at step 1, where the loss is"):
        train_student(student, teacher, {}, [X], settings=settings, folder=tmp_path)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in student.parameters())
    assert not (tmp_path / "progress").exists()


Wrap = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize("wrong", [lambda y: y[:, None], lambda y: y[:, None, None].expand(-1, 1, 2)])
def test_labels_of_another_shape_do_for_calibration_and_are_refused_for_evaluation(wrong: Wrap) -> None:
    labels = wrong(Y)
    run = mpcore.prune(network(), RECIPE, calibration=[(X, labels)], progress=False)
    assert run.report.certificate.accuracy_dense is None
    with pytest.raises(ValueError, match=r"evaluation: batch 0: targets are torch.int64 \(64, 1.*wanted integers"):
        mpcore.prune(network(), RECIPE, calibration=[X], evaluation=[(X, labels)], progress=False)


def test_shares_of_classes_train_a_student_and_leave_a_whole_run(tmp_path: Path) -> None:
    run = mpcore.prune(network(), RECIPE, calibration=[X], out=tmp_path / "run", progress=False)
    mpcore.distill(run, [(X, nn.functional.one_hot(Y, 4).float())], epochs=1, progress=False)
    assert mpcore.verify(run.folder).ok


class Masked(nn.Module):
    """Rules a class out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.full_like(x[:, :1], -torch.inf)], 1)


def test_a_logit_that_is_not_finite_is_refused_before_any_layer_is_pruned(tmp_path: Path) -> None:
    model = nn.Sequential(network(), Masked())
    with pytest.raises(ValueError, match="logit 4 of calibration sample 0 is -inf"):
        mpcore.prune(model, RECIPE, calibration=[X], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
