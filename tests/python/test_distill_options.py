"""Optimizer, accumulation, precision, averaging, features: each against an obvious twin, each resumed to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import TinyConvNet, tiny_vit
from students import PowerCut, X, Y, batches, exact_pair, pair
from torch import Tensor, nn

from mpcore.models.apply import layer_of
from mpcore.models.distill import DistillSettings, train_student
from mpcore.models.export import state_sha256
from mpcore.models.features import feature_loss, layer_outputs
from mpcore.models.objective import Objective, distillation_loss
from mpcore.models.optimizer import learning_rate, make_optimizer, rates

OPTIONS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.03},
    {"accumulate": 4},
    {"precision": "bfloat16"},
    {"ema": 0.9},
    {"features": 2.0},
    {"optimizer": "sgd", "lr": 0.03, "accumulate": 2, "precision": "bfloat16", "ema": 0.9, "features": 1.0},
]


def settings(**changes: Any) -> DistillSettings:
    return DistillSettings(**{"epochs": 2, "lr": 3e-3, "save_every": 1, **changes})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("chosen", OPTIONS, ids=str)
@pytest.mark.parametrize("cut", [3, 7, 10])
def test_an_interrupted_training_ends_with_the_same_bits_and_its_masks(
    tmp_path: Path, chosen: dict[str, Any], cut: int
) -> None:
    whole, teacher, masks = pair()
    expected = train_student(whole, teacher, masks, batches("loader"), settings=settings(**chosen))
    student, _, _ = pair()
    with pytest.raises(KeyboardInterrupt):
        train_student(
            student, teacher, masks, PowerCut(batches("loader"), cut), settings=settings(**chosen), folder=tmp_path
        )
    for _ in range(2):  # the second call takes up a finished training
        again, _, _ = pair()
        found = train_student(again, teacher, masks, batches("loader"), settings=settings(**chosen), folder=tmp_path)
        assert state_sha256(again) == state_sha256(whole)
        assert [(e.step, e.loss, e.lr) for e in found.entries] == [(e.step, e.loss, e.lr) for e in expected.entries]
    for name, mask in masks.items():
        pruned = layer_of(again, name).weight.detach()[~mask]
        assert torch.equal(pruned.view(torch.int32), torch.zeros_like(pruned, dtype=torch.int32))


def test_sgd_is_nesterovs_momentum_with_decay_on_matrices_alone() -> None:
    student, teacher, _ = exact_pair()
    batch, chosen = (X.double(), Y), settings(optimizer="sgd", lr=0.05, weight_decay=0.1, clip=1e9, epochs=3)
    twin, _, _ = exact_pair()
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    for step in range(3):
        rate = 0.05 * learning_rate(step, 3, chosen.warmup)
        gradients = torch.autograd.grad(Objective(twin, teacher, (), chosen)(*batch), list(twin.parameters()))
        with torch.no_grad():
            for index, (p, g) in enumerate(zip(twin.parameters(), gradients, strict=True)):
                g = g + 0.1 * p if p.ndim > 1 else g
                velocity[index] = 0.9 * velocity[index] + g
                p -= rate * (g + 0.9 * velocity[index])
    train_student(student, teacher, {}, [batch], settings=chosen)
    assert torch.allclose(weights(student), weights(twin), rtol=1e-11, atol=1e-13)


def test_each_optimizer_has_the_papers_rates_unless_told_otherwise() -> None:
    assert rates(DistillSettings()) == (1e-5, 0.01)
    assert rates(DistillSettings(optimizer="sgd")) == (1e-3, 1e-4)
    assert rates(DistillSettings(optimizer="sgd", lr=0.1, weight_decay=0.0)) == (0.1, 0.0)
    made = make_optimizer(TinyConvNet(), DistillSettings(optimizer="sgd"))
    assert [group["weight_decay"] for group in made.param_groups] == [1e-4, 0.0]
    assert all(p.ndim <= 1 for p in made.param_groups[1]["params"])
    assert all(p.ndim > 1 for p in made.param_groups[0]["params"])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_accumulated_batches_are_one_large_batch(optimizer: str) -> None:
    x, y = X.double(), Y
    small = [(x[i : i + 5], y[i : i + 5]) for i in range(0, 48, 5)]  # nine of 5 and one of 3
    large = [(x[i : i + 20], y[i : i + 20]) for i in range(0, 48, 20)]  # 20, 20, 8: the last group is incomplete
    chosen = {"optimizer": optimizer, "lr": 0.01, "features": 1.0, "epochs": 2}
    one, teacher, masks = exact_pair()
    expected = train_student(one, teacher, masks, large, settings=settings(**chosen))
    many, _, _ = exact_pair()
    found = train_student(many, teacher, masks, small, settings=settings(accumulate=4, **chosen))
    assert torch.allclose(weights(many), weights(one), rtol=1e-9, atol=1e-11)
    assert [(e.step, e.lr) for e in found.entries] == [(e.step, e.lr) for e in expected.entries]
    assert [e.loss for e in found.entries] == pytest.approx([e.loss for e in expected.entries], rel=1e-6)


def test_the_average_is_the_recursion_over_the_weights_after_every_step() -> None:
    visited: list[Tensor] = []

    class Watched(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                visited.append(weights(plain))
                yield batch

    plain, teacher, masks = exact_pair()
    data = [(X[i : i + 8].double(), Y[i : i + 8]) for i in range(0, 48, 8)]
    train_student(plain, teacher, masks, Watched(data), settings=settings())
    average = visited[0]
    for step, now in enumerate([*visited[1:], weights(plain)], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * now
    averaged, _, _ = exact_pair()
    train_student(averaged, teacher, masks, data, settings=settings(ema=0.5))
    assert torch.allclose(weights(averaged), average, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(weights(averaged), weights(plain), rtol=1e-4)


def test_the_average_takes_the_students_own_buffers() -> None:
    plain, teacher, masks = pair()
    train_student(plain, teacher, masks, batches("list"), settings=settings(update_batchnorm=True))
    averaged, _, _ = pair()
    train_student(averaged, teacher, masks, batches("list"), settings=settings(update_batchnorm=True, ema=0.9))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), averaged.buffers(), strict=True))


@pytest.mark.parametrize("build", [TinyConvNet, tiny_vit])
def test_bfloat16_runs_both_networks_low_and_keeps_weights_and_losses_wide(build: Any) -> None:
    student, teacher = build(0), build(1)
    inputs = X[:4] if build is TinyConvNet else X[:4, :1, :8, :8]
    seen: list[torch.dtype] = []
    for model in (student, teacher):
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    loss = Objective(student, teacher, (), settings(precision="bfloat16"))(inputs, Y[:4])
    loss.backward()
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert loss.dtype == torch.float32
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in student.parameters())
    exact = Objective(student, teacher, (), settings())(inputs, Y[:4])
    assert loss.item() == pytest.approx(exact.item(), rel=2**-5)
    assert loss.item() != exact.item()


def test_bfloat16_training_goes_where_float32_training_goes() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        student, teacher, masks = pair()
        history = train_student(
            student, teacher, masks, batches("shuffled"), settings=settings(epochs=6, precision=precision)
        )
        losses[precision] = history.entries[-1].loss
        assert history.entries[-1].loss < history.entries[0].loss
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_the_feature_loss_is_the_formula() -> None:
    student, teacher, masks = exact_pair()
    x = X[:6].double()
    total = 0.0
    for name in masks:
        with torch.no_grad(), layer_outputs(student, [name]) as ours, layer_outputs(teacher, [name]) as theirs:
            student(x)
            teacher(x)
        total += sum(float((s - t).norm() ** 2 / t.norm() ** 2) for s, t in zip(ours[name], theirs[name], strict=True))
    chosen = settings(features=0.7)
    plain = distillation_loss(student(x), teacher(x), Y[:6], chosen)
    found = Objective(student, teacher, masks, chosen)(x, Y[:6])
    assert (found - plain).item() == pytest.approx(0.7 * total / (6 * len(masks)), rel=1e-10)


def test_the_feature_loss_brings_the_layers_nearer_to_the_teachers() -> None:
    def distance(student: nn.Module, teacher: nn.Module, masks: dict[str, Tensor]) -> float:
        with torch.no_grad(), layer_outputs(student, masks) as ours, layer_outputs(teacher, masks) as theirs:
            student(X)
            teacher(X)
            return float(feature_loss(ours, theirs))

    after = {}
    for weight in (0.0, 5.0):
        student, teacher, masks = pair()
        train_student(student, teacher, masks, batches("shuffled"), settings=settings(epochs=6, features=weight))
        after[weight] = distance(student, teacher, masks)
    assert after[5.0] < 0.8 * after[0.0]


def test_layers_that_cannot_be_compared_are_named() -> None:
    student, teacher, masks = pair()
    with pytest.raises(ValueError, match="it needs both"):
        train_student(student, None, masks, batches("list"), settings=settings(features=1.0))
    with pytest.raises(ValueError, match="it needs both"):
        train_student(student, teacher, {}, batches("list"), settings=settings(features=1.0))
    one = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"layer a answers \(2, 3\) in the teacher, \(2, 2\) in the student"):
        feature_loss({"a": one[:, :2]}, {"a": one})
    with pytest.raises(ValueError, match="layer b took no part in the teacher"):
        feature_loss({"a": one, "b": one}, {"a": one})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adam"}, "optimizer = 'adam', wanted adamw or sgd"),
        ({"precision": "float16"}, "precision = 'float16', wanted float32 or bfloat16"),
        ({"accumulate": 0}, "accumulate = 0 is out of range"),
        ({"ema": 1.0}, "ema = 1.0 is out of range"),
        ({"features": -1.0}, "features = -1.0 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillSettings(**wrong)
