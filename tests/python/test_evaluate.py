"""Evaluation against a few plain lines of NumPy, and against bad data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpcore.models.evaluate import evaluate, keep_modes, logits


def labelled(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 7, (n,), generator=generator)


def net(seed: int, classes: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, classes)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 50))
def test_the_report_equals_plain_numpy_whatever_the_batches(sizes: list[int], seed: int) -> None:
    x, y = labelled(sum(sizes), seed)
    model, teacher = net(1), net(2)
    report = evaluate(model, zip(x.split(sizes), y.split(sizes), strict=True), teacher=teacher, name="pruned")
    a, b, labels = (value.detach().double().numpy() for value in (model(x), teacher(x), y))
    labels = labels.astype(int)
    log_p, log_q = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (a, b))
    rows = np.arange(len(a))
    ranks = (a > a[rows, labels][:, None]).sum(1)
    assert (report.model, report.n) == ("pruned", len(x))
    assert report.top1 == (a.argmax(1) == labels).mean()
    assert report.top5 == (ranks < 5).mean()
    assert report.agreement == (a.argmax(1) == b.argmax(1)).mean()
    assert math.isclose(report.nll or 0, -log_p[rows, labels].mean(), rel_tol=1e-5)
    assert math.isclose(report.kl or 0, (np.exp(log_q) * (log_q - log_p)).sum(1).mean(), rel_tol=1e-4, abs_tol=1e-7)


def test_intervals_are_wilsons() -> None:
    """8 of 10: (0.4902, 0.9433), as in Newcombe, Statistics in Medicine 17 (1998)."""
    answers = torch.eye(2)[[0] * 8 + [1] * 2] * 5
    report = evaluate(nn.Identity(), [(answers, torch.zeros(10, dtype=torch.long))])
    assert report.top1 == 0.8
    assert np.allclose(report.top1_ci, (0.4902, 0.9433), atol=1e-4)


def test_what_cannot_be_known_is_none() -> None:
    x, _ = labelled(5)
    report = evaluate(net(1), [x])
    assert (report.top1, report.top1_ci, report.top5, report.nll, report.agreement, report.kl) == (None,) * 6
    assert evaluate(net(1, 4), [(x, torch.zeros(5, dtype=torch.long))]).top5 is None


def test_a_model_agrees_with_itself_and_every_module_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), net(1)).train()
    model[1].eval()
    report = evaluate(model, iter([labelled(20)]), teacher=model)
    assert (report.agreement, report.kl) == (1.0, 0.0)
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_modes_come_back_after_an_error() -> None:
    model = nn.Dropout()
    with pytest.raises(TypeError), keep_modes(model):
        model.eval()(None)
    assert model.training


def test_logits_come_in_order_with_their_labels() -> None:
    x, y = labelled(7)
    model = net(3)
    found, labels = logits(model, [(x[:4], y[:4]), (x[4:], y[4:])])
    assert found.dtype == np.float32
    assert np.allclose(found, model(x).detach().numpy(), atol=1e-6)
    assert labels is not None
    assert labels.tolist() == y.tolist()
    assert logits(model, [x])[1] is None


def hot() -> nn.Module:
    class Hot(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 3), torch.nan)

    return Hot()


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (net(0), [], ValueError, "no batches"),
        (net(0), labelled(3)[0], TypeError, "wrap one batch"),
        (net(0), 3, TypeError, "int is not an iterable"),
        (hot(), [labelled(3)], ValueError, "model 'model', batch 0: logits hold NaN"),
        (nn.Flatten(0), [labelled(3)], ValueError, "wanted \\(n, classes\\)"),
        (net(0), [(labelled(3)[0], torch.tensor([0, 7, 1]))], ValueError, "target 7 is not one of the 7"),
        (net(0), [(labelled(3)[0], torch.tensor([0, -1, 1]))], ValueError, "target -1"),
        (net(0), [(labelled(3)[0], torch.tensor([0.0, 1, 1]))], ValueError, "targets are torch.float32"),
        (net(0), [(labelled(3)[0], torch.tensor([0, 1]))], ValueError, "wanted integers \\(3,\\)"),
        (net(0), [labelled(3), labelled(3)[0]], ValueError, "batch 1: some batches have targets"),
    ],
)
def test_bad_data_is_refused_by_name(model: nn.Module, data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(model, data)  # type: ignore[arg-type]


def test_a_teacher_with_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher's logits are \(3, 5\), model's \(3, 7\)"):
        evaluate(net(0), [labelled(3)], teacher=net(1, 5))
