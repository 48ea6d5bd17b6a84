"""Distillation: the loss against its formula, masks held, and a resumed run with the bits of an uninterrupted one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from students import PowerCut, X, Y, batches, noisy, pair

from mpcore import ConvergenceError
from mpcore.models.apply import layer_of
from mpcore.models.distill import DistillSettings, train_student
from mpcore.models.export import state_sha256
from mpcore.models.objective import distillation_loss
from mpcore.models.optimizer import learning_rate
from mpcore.models.shuffle import ShuffledBatches

QUICK = DistillSettings(epochs=2, lr=3e-3, dropout=True, save_every=3)


def test_the_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    student, teacher, targets = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    settings = DistillSettings(alpha=0.3, temperature=3.0, label_smoothing=0.2)
    p, q, log_p = (student / 3).softmax(1), (teacher / 3).softmax(1), student.log_softmax(1)
    soft = 0.8 * torch.eye(4)[targets] + 0.2 / 4
    cross, kl = -(soft * log_p).sum(1).mean(), (q * (q / p).log()).sum(1).mean()
    assert torch.allclose(distillation_loss(student, teacher, targets, settings), 0.7 * cross + 0.3 * 9 * kl)
    assert torch.allclose(distillation_loss(student, teacher, None, settings), 9 * kl)
    assert torch.allclose(distillation_loss(student, None, targets, settings), cross)
    with pytest.raises(ValueError, match="needs targets"):
        distillation_loss(student, None, None, settings)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    logits = torch.randn(3, 5)
    assert float(distillation_loss(logits, logits, None, DistillSettings())) == pytest.approx(0, abs=1e-6)


def test_training_brings_the_student_nearer_and_holds_masks_teacher_and_statistics() -> None:
    student, teacher, masks = pair()
    before, frozen = student.state_dict()["blocks.0._bn0.running_mean"].clone(), state_sha256(teacher)
    settings = DistillSettings(epochs=6, lr=3e-3)
    history = train_student(student, teacher, masks, batches("shuffled"), settings=settings)
    assert history.entries[-1].loss < history.entries[0].loss
    assert [entry.step for entry in history.entries][-1] == 36
    assert state_sha256(teacher) == frozen
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(student.state_dict()["blocks.0._bn0.running_mean"], before)
    for name, mask in masks.items():
        pruned = layer_of(student, name).weight.detach()[~mask]
        assert torch.equal(pruned.view(torch.int32), torch.zeros_like(pruned, dtype=torch.int32))
    assert not student.training
    assert not teacher.training


def test_batchnorm_statistics_move_only_on_request() -> None:
    student, teacher, masks = pair()
    before = student.state_dict()["blocks.0._bn0.running_mean"].clone()
    settings = DistillSettings(epochs=1, update_batchnorm=True)
    train_student(student, teacher, masks, batches("list"), settings=settings)
    assert not torch.equal(student.state_dict()["blocks.0._bn0.running_mean"], before)


def test_dropout_drops_only_on_request() -> None:
    """A student that still is its teacher answers alike, so without dropout nothing but rounding is left to learn."""
    losses = []
    for dropout in (False, True):
        _, teacher, _ = pair()
        settings = DistillSettings(epochs=1, lr=1e-9, alpha=1.0, dropout=dropout)
        history = train_student(copy.deepcopy(teacher), teacher, {}, batches("list"), settings=settings)
        losses.append(max(entry.loss for entry in history.entries))
    assert losses[0] < 1e-7 < 1e-6 < losses[1]


def test_unlabelled_batches_train_on_the_teacher_alone() -> None:
    student, teacher, masks = pair()
    history = train_student(student, teacher, masks, [X[:24], X[24:]], settings=DistillSettings(epochs=8, lr=3e-3))
    assert history.entries[-1].loss < history.entries[0].loss


@pytest.mark.parametrize("kind", ["shuffled", "list", "loader", "loader with a generator"])
@pytest.mark.parametrize("cut", [2, 4, 6, 11])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, kind: str, cut: int) -> None:
    whole, teacher, masks = pair()
    torch.manual_seed(1)
    expected = train_student(whole, teacher, masks, batches(kind), settings=QUICK)
    student, _, _ = pair()
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        train_student(student, teacher, masks, PowerCut(batches(kind), cut), settings=QUICK, folder=tmp_path)
    again, _, _ = pair()
    torch.manual_seed(3)
    found = train_student(again, teacher, masks, batches(kind), settings=QUICK, folder=tmp_path)
    assert state_sha256(again) == state_sha256(whole)
    assert [(e.step, e.epoch, e.loss, e.lr) for e in found.entries] == [
        (e.step, e.epoch, e.loss, e.lr) for e in expected.entries
    ]


def test_a_finished_training_is_taken_up_as_it_ended(tmp_path: Path) -> None:
    student, teacher, masks = pair()
    first = train_student(student, teacher, masks, batches("list"), settings=QUICK, folder=tmp_path)
    again, _, _ = pair()
    assert train_student(again, teacher, masks, batches("list"), settings=QUICK, folder=tmp_path) == first
    assert state_sha256(again) == state_sha256(student)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [entry.step for entry in first.entries]


def test_a_state_of_another_training_is_refused_and_resume_false_starts_again(tmp_path: Path) -> None:
    student, teacher, masks = pair()
    train_student(student, teacher, masks, batches("list"), settings=QUICK, folder=tmp_path)
    other = replace(QUICK, lr=1e-3)
    fresh, _, _ = pair()
    with pytest.raises(ValueError, match=r"lr was 0.003, now 0.001.*resume=False \(--no-resume\)"):
        train_student(fresh, teacher, masks, batches("list"), settings=other, folder=tmp_path)
    with pytest.raises(ValueError, match="student_sha256 was"):
        train_student(student, teacher, masks, batches("list"), settings=QUICK, folder=tmp_path)
    history = train_student(fresh, teacher, masks, batches("list"), settings=other, folder=tmp_path, resume=False)
    assert history.entries[0].step == 1


def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "train.safetensors").write_bytes(b"nonsense")
    student, teacher, masks = pair()
    with pytest.raises(ValueError, match=r"train\.safetensors: not a state"):
        train_student(student, teacher, masks, batches("list"), settings=QUICK, folder=tmp_path)


def test_the_callers_random_numbers_are_not_touched() -> None:
    student, teacher, masks = pair()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_student(student, teacher, masks, batches("loader"), settings=QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_the_learning_rate_rises_and_falls_to_almost_nothing() -> None:
    rates = [learning_rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3


def test_shuffled_batches_are_a_function_of_seed_and_epoch() -> None:
    one, two = ShuffledBatches(X, Y, seed=1, augment=noisy), ShuffledBatches(X, Y, seed=1, augment=noisy)
    list(one)
    one.set_epoch(2)
    two.set_epoch(2)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True))
    two.set_epoch(3)
    assert not torch.equal(next(iter(one))[1], next(iter(two))[1])
    with pytest.raises(ValueError, match="48 inputs and 3 targets"):
        ShuffledBatches(X, Y[:3])


class Endless:
    def __iter__(self) -> Iterator[Any]:
        return iter([X])


class Short(Endless):
    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        ([], ValueError, "no batches"),
        (X, TypeError, "wrap one batch"),
        (iter([X]), TypeError, "gives its batches once"),
        (Endless(), TypeError, "has no length"),
        ([(X[:0], Y[:0])], ValueError, "no sample in the batches of step 1"),
        (Short(), ValueError, "gave 1 batches in epoch 1, its length is 2"),
    ],
)
def test_bad_training_data_is_refused(train: Any, error: type[Exception], message: str) -> None:
    student, teacher, masks = pair()
    with pytest.raises(error, match=message):
        train_student(student, teacher, masks, train)


def test_bad_masks_teachers_and_rates_are_refused() -> None:
    student, teacher, masks = pair()
    data = batches("list")
    with pytest.raises(ValueError, match="same module"):
        train_student(student, student, masks, data)
    with pytest.raises(ValueError, match=r"fc: 1[0-9]* weights are not zero"):
        train_student(teacher, None, {"fc": masks["fc"]}, data)
    with pytest.raises(ValueError, match=r"layer fc: its mask is torch\.float32"):
        train_student(student, teacher, {"fc": masks["fc"].float()}, data)
    with pytest.raises(ValueError, match="temperature = 0"):
        DistillSettings(temperature=0)
    with pytest.raises(ConvergenceError, match="the loss is nan at step"):
        train_student(student, teacher, {}, [(X * torch.nan, Y)])
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        train_student(student, teacher, {}, data)
