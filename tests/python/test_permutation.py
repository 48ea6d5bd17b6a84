"""The check that an order leaves the output alone, and what follows where a template does not hold."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import TinyConvNet, images, tiny_vit
from torch import Tensor, nn

import mpcore
from mpcore.models import plans
from mpcore.models.permutation import SINGLE, TOLERANCE, OutputCheck, find_groups, relative_change

QUICK: dict[str, Any] = {"solver": "none", "sequence": "parallel", "permute_rounds": 4, "certify_samples": 4}


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Any


class Shows(nn.Module):
    """A chain that a template knows, of which the forward pass shows the channels between."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.drop = how, nn.Dropout(0.5)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
        self.aux = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = self.net[:2](x)
        y = self.net[2:](hidden)
        if self.how == "tuple":
            return y, hidden
        if self.how == "nested":
            return y, [{"a": (hidden.argmax(-1),)}]
        if self.how == "dataclass":
            return Answer(y, (hidden,))
        if self.how == "state":
            return SimpleNamespace(logits=y, cache=hidden)
        if self.how == "aux":
            return (y, self.aux(self.drop(hidden))) if self.training else y
        if self.how == "chance":
            return y + nn.functional.dropout(y, training=True) if self.training else y
        if self.how == "targets" and self.training:
            raise ValueError("targets are wanted in training mode")
        return y


@pytest.mark.parametrize("how", ["tuple", "nested", "dataclass", "aux"])
def test_channels_that_another_output_shows_stay_in_place(how):
    net = Shows(how).eval()
    run = mpcore.prune(net, mpcore.Recipe(**QUICK), calibration=[torch.randn(32, 8)], progress=False)
    assert [group.consumers for group in run.report.plan.groups] == [("net.4",)]
    assert "net.2" in run.report.plan.refused
    dense = mpcore.load(run.folder, Shows(how), which="dense")
    torch.manual_seed(3)
    inputs, (before, after) = torch.randn(4, 8), (net.train(how == "aux"), dense.train(how == "aux"))
    for seed in (1, 2):
        outputs = []
        for model in (before, after):
            torch.manual_seed(seed)
            found = model(inputs)
            outputs.append(found.hidden[0] if how == "dataclass" else found[1])
        if how == "nested":
            outputs = [found[0]["a"][0] for found in outputs]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["plain", "state", "chance", "targets"])
def test_what_is_no_answer_or_cannot_be_repeated_holds_no_channels_back(how):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    groups, _ = find_groups(Shows(how).eval(), torch.randn(2, 8), mpcore.Recipe())
    assert [group.consumers for group in groups] == [("net.2",), ("net.4",)]
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    assert OutputCheck(Shows(how).eval(), torch.randn(2, 8)).trained is None


class PreActivation(nn.Module):
    """A block with ResNet's names in another order: bn1 and conv1, bn2 and conv2."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


def pre_activation_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [PreActivation(), PreActivation()]
    net = nn.Sequential(nn.Conv2d(3, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        for block in blocks:
            for norm in (block.bn1, block.bn2):
                norm.weight.uniform_(0.5, 2)
                norm.running_mean.normal_()
    return net.eval()


def test_where_a_template_is_refuted_the_traced_group_takes_its_place(tmp_path):
    net, batches = pre_activation_net(), [images(4)]
    assert [group.channelwise for group in plans.find(net)] == [("1.bn1",), ("2.bn1",)]
    run = mpcore.prune(net, mpcore.Recipe(**QUICK), calibration=batches, out=tmp_path / "run", progress=False)
    plan = run.report.plan
    assert [group.consumers for group in plan.groups] == [("1.conv2",), ("2.conv2",)]
    assert all(group.kept > group.kept_identity for group in plan.groups)
    assert not any("not a free permutation" in why for why in plan.refused.values())
    dense = mpcore.load(run.folder, pre_activation_net(1), which="dense").eval()
    torch.testing.assert_close(dense(batches[0]), net(batches[0]), rtol=1e-4, atol=1e-5)


def test_a_run_resumed_after_such_a_permutation_ends_with_the_same_bytes(tmp_path, monkeypatch):
    def prune(folder):
        options = {"calibration": [images(4)], "out": tmp_path / folder, "progress": False}
        return mpcore.prune(pre_activation_net(), mpcore.Recipe(**QUICK), **options)

    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    whole = prune("whole")
    monkeypatch.setattr(mpcore.pipeline._Stages, "prune_layers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune("halves")
    monkeypatch.undo()
    halves = prune("halves")
    for file in ("model.safetensors", "dense.safetensors", "plan.json"):
        assert (halves.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_a_template_that_neither_holds_nor_is_traced_says_why():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x).cumsum(-1))

    net = nn.Sequential()
    net.add_module("mlp", Reads())
    groups, refused = find_groups(net.eval(), torch.randn(2, 8), mpcore.Recipe())
    assert groups == ()
    assert refused["mlp.fc2"] == "cumsum has no rule"


class Single(nn.Module):
    """Code that puts float32 beside whatever the model is in."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.first, self.second, self.head = how, nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "float":
            x = x.float()
        elif self.how == "product":
            x = x @ torch.eye(16)
        elif self.how == "norm":
            x = x * (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt().to(x.dtype)
        elif self.how == "half":
            return self.head(self.second(x.to(torch.bfloat16)))
        return self.head(self.second(x).relu()).float()


@pytest.mark.parametrize(
    ("how", "tolerance"), [("float", SINGLE), ("product", SINGLE), ("norm", SINGLE), ("end", 4 * 2**-23)]
)
def test_a_model_that_cannot_run_in_float64_is_checked_in_float32(how, tolerance):
    net = Single(how).eval()
    check = OutputCheck(net, torch.randn(2, 16))
    assert (check.failure, check.tolerance) == ("", tolerance)
    wrong = plans.PermutationGroup(("second",), ())
    right = plans.PermutationGroup(("head",), (plans.Producer("second"),))
    assert list(check.refute([wrong, right])) == [wrong]
    run = mpcore.prune(net, mpcore.Recipe(**QUICK), calibration=[torch.randn(8, 16)], progress=False)
    assert [group.consumers for group in run.report.plan.groups] == ([] if how == "product" else [("second",)])


def test_a_model_that_runs_in_neither_is_not_permuted_and_says_why():
    net = Single("half").eval()
    net.second.bfloat16()
    net.head.bfloat16()
    groups, refused = find_groups(net, torch.randn(2, 16), mpcore.Recipe())
    assert groups == ()
    assert refused["second"].startswith("the output cannot be checked in float64 or float32 (RuntimeError: ")


def test_the_check_leaves_its_copy_as_it_was():
    for net, sample in ((TinyConvNet(), images(2)), (tiny_vit(), images(2, channels=1, size=8))):
        check = OutputCheck(net, sample)
        before = {name: values.clone() for name, values in check.model.state_dict().items()}
        assert not check.refute(plans.find(net))
        assert all(torch.equal(before[name], values) for name, values in check.model.state_dict().items())
        assert check.tolerance == TOLERANCE


def test_changes_by_hand():
    a = torch.tensor([1.0, -4.0, torch.inf])
    assert relative_change([a], [a.clone()]) == 0
    assert relative_change([a], [a + torch.tensor([1.0, 0.0, 0.0])]) == 0.25
    small = torch.tensor([1e-3])
    assert relative_change([a, small], [a, 2 * small]) == pytest.approx(1.0)
    assert relative_change([a], [a, small]) == torch.inf
    assert relative_change([a], [a.double()]) == torch.inf
    assert relative_change([torch.tensor([torch.nan])], [torch.tensor([torch.nan])]) == torch.inf
    assert relative_change([small, torch.tensor([3])], [small, torch.tensor([4])]) == torch.inf
    assert relative_change([torch.tensor([2j])], [torch.tensor([1 + 2j])]) == 0.5
    assert relative_change([torch.zeros(0)], [torch.zeros(0)]) == 0


def test_orders_that_change_the_output_after_all_are_undone(monkeypatch):
    """Where the random orders that are tried before have not shown it."""
    right = plans.PermutationGroup(("second",), (plans.Producer("first"),))
    wrong = plans.PermutationGroup(("first",), ())
    monkeypatch.setattr(OutputCheck, "refute", lambda *_: {})
    monkeypatch.setattr("mpcore.models.permutation.find_groups", lambda *_: ((right, wrong), {}))
    net, batches = Single("plain").eval(), [torch.randn(8, 16)]
    run = mpcore.prune(net, mpcore.Recipe(**QUICK), calibration=batches, progress=False)
    assert [group.consumers for group in run.report.plan.groups] == [("second",)]
    assert "not a free permutation" in run.report.plan.refused["first"]
    dense = mpcore.load(run.folder, Single("plain"), which="dense").eval()
    torch.testing.assert_close(dense(batches[0]), net(batches[0]), rtol=1e-5, atol=1e-6)
