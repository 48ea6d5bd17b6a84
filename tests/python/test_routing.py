"""Layers of which the data choose the rows: the targets of such a layer come from its own inputs alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from nets import TinyConvNet, images
from torch import nn

import mpcore
from mpcore.models.calibrate import calibrate
from mpcore.models.proof import find_routed
from mpcore.models.sequence import Walk, prune_layers
from mpcore.records import Pattern

WIDTH = 16


def tokens(samples: int, seed: int) -> torch.Tensor:
    return torch.randn(samples, 9, WIDTH, generator=torch.Generator().manual_seed(seed))


class Mixture(nn.Module):
    """Two experts for the tokens of a whole batch: each token goes to one, or each expert takes as many as fit."""

    def __init__(self, *, full: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.entry, self.router, self.end = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2), nn.Linear(WIDTH, WIDTH)
        self.experts, self.head = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)), nn.Linear(WIDTH, 4)
        self.full = full
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.entry(x))
        flat, out = x.reshape(-1, WIDTH), torch.zeros_like(x).reshape(-1, WIDTH)
        scores = self.router(flat)
        for index, expert in enumerate(self.experts):
            best = scores[:, index].topk(len(flat) // 2).indices
            chosen = best if self.full else (scores.argmax(1) == index).nonzero()[:, 0]
            out = out.index_add(0, chosen, torch.relu(expert(flat[chosen])))
        return self.head(torch.relu(self.end(x + out.reshape(x.shape))).mean(1))


class Fixed(nn.Module):
    """What may look like a choice: samples one by one or along an inner axis, levels of two sizes, a constant table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.inner, self.levels, self.table = (
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.register_buffer("places", torch.randn(7, WIDTH))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.stack([self.conv(sample.T[..., None])[..., 0].T for sample in x])
        x = self.inner(x.reshape(-1, 3, 3, WIDTH).permute(1, 0, 2, 3).reshape(-1, WIDTH)).reshape(3, -1, 3, WIDTH)
        x = x.transpose(0, 1).flatten(1, 2)
        return (self.levels(x).mean(1) + self.levels(x[:, :4]).mean(1)) * self.table(self.places).mean(0)


class Inner(nn.Module):
    """Something that takes (tokens, samples, channels)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.transpose(0, 1)).mean(0)


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize("full", [False, True])
def test_the_experts_of_a_mixture_and_nothing_else_are_routed(full):
    model = Mixture(full=full)
    assert find_routed(model, layers(model), [tokens(4, 0), tokens(4, 1)]) == {"experts.0", "experts.1"}


def test_single_samples_give_an_expert_away_by_the_number_of_its_rows():
    model = Mixture()
    batches = [tokens(1, seed) for seed in range(6)]
    assert find_routed(model, layers(model), batches) == {"experts.0", "experts.1"}


@pytest.mark.parametrize(
    ("build", "batches"),
    [
        (Fixed, [tokens(4, 0), tokens(2, 1), tokens(1, 2)]),
        (TinyConvNet, [images(4, seed=0), images(3, seed=1)]),
        (
            lambda: timm.create_model(
                "swinv2_tiny_window8_256", img_size=32, window_size=4, depths=(2,), num_heads=(2,), embed_dim=16
            ),
            [images(3, size=32, seed=0)],
        ),
        (
            lambda: Inner(nn.TransformerEncoderLayer(WIDTH, 2, 32)),
            [tokens(5, 0)],
        ),
    ],
)
def test_samples_along_any_axis_and_constants_are_not_routed(build, batches):
    model = build().eval()
    assert find_routed(model, layers(model), batches) == frozenset()


@pytest.mark.parametrize("full", [False, True])
def test_an_expert_is_fitted_to_its_own_rows_and_the_layers_around_to_the_dense_path(full):
    dense, pruned = Mixture(full=full), Mixture(full=full)
    batches = [tokens(8, 0), tokens(8, 1)]
    names = ["entry", "experts.0", "experts.1", "end"]
    stats = calibrate(dense, names, batches)
    recipe = mpcore.Recipe(permute=False)
    walk = Walk(dense, pruned, dict.fromkeys(names, Pattern("2:4")), stats, batches, recipe, seed=0)
    targets = {}
    solve = walk.prune
    walk.prune = lambda name: targets.setdefault(name, walk.problem(name)[0]) and solve(name)
    prune_layers(walk)
    for name in ("experts.0", "experts.1"):
        np.testing.assert_array_equal(targets[name].target, dense.get_submodule(name).weight.detach().numpy())
    assert not np.array_equal(targets["end"].target, dense.end.weight.detach().numpy())


def test_a_mixture_is_pruned_and_certified_as_it_is(tmp_path):
    batches = [tokens(8, 0), tokens(8, 1)]
    run = mpcore.prune(Mixture(), "default", calibration=batches, out=tmp_path / "run", progress=False)
    assert mpcore.verify(tmp_path / "run").ok
    with torch.no_grad():
        logits = run.model(torch.cat(batches)).double()
        before = Mixture()(torch.cat(batches)).double()
    np.testing.assert_allclose((logits - before).abs().amax(1), run.report.certificate.eta, atol=1e-5)


class Mlp(nn.Module):
    """fc2(relu(fc1 x)), or with each hidden channel added to the next: channels that no order is free for."""

    def __init__(self, *, mixed: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.mixed = nn.Linear(8, 16), nn.Linear(16, 8), mixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.fc1(x))
        return self.fc2(hidden + hidden.roll(1, -1) if self.mixed else hidden)


class Step(nn.Module):
    def __init__(self, *, mixed: bool) -> None:
        super().__init__()
        self.mlp = Mlp(mixed=mixed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


class Switch(nn.Module):
    """Samples of a positive first value go through the second expert, in calls that may get none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.experts, self.head = nn.ModuleList([Step(mixed=False), Step(mixed=True)]), nn.Linear(8, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, second = torch.zeros_like(x), x[:, 0] > 0
        out[~second] = self.experts[0](x[~second])
        out[second] = self.experts[1](x[second])
        return self.head(out)


def test_orders_that_change_samples_the_check_did_not_see_are_undone(tmp_path: Path) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[:2, 0] = -1.0
    model = Switch()
    run = mpcore.prune(model, mpcore.Recipe(certify_samples=64), calibration=[x], out=tmp_path / "run", progress=False)
    assert run.report.plan.groups == ()
    assert "together changed logits" in run.report.plan.refused["experts.1.mlp.fc2"]
    with torch.no_grad():
        before, after = model(x), run.model(x)
    certificate = run.report.certificate
    certified = torch.tensor(certificate.margin) > 2 * torch.tensor(certificate.eta)
    assert torch.equal(before.argmax(1)[certified], after.argmax(1)[certified])
    assert ((before - after).abs().amax(1).double() <= torch.tensor(certificate.eta) * 1.001).all()
    assert torch.equal(mpcore.load(run.folder, Switch(), which="dense")(x), before)


def test_an_expert_may_get_no_sample_of_a_batch_or_none_at_all() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[:16, 0] = -1.0
    stats = calibrate(Switch(), ["experts.1.mlp.fc1"], x.split(16))
    assert stats["experts.1.mlp.fc1"].count == int((x[:, 0] > 0).sum())
    stats = calibrate(Switch(), ["experts.1.mlp.fc1"], [x[:16]])
    assert stats.refused == {"experts.1.mlp.fc1": "never called on the calibration data, or read without calling it"}
