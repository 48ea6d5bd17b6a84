from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Encoder, TinyConvNet, images, tiny_vit
from torch import Tensor, nn
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig

import mpcore
from mpcore.models import plans
from mpcore.models.inventory import inventory
from mpcore.models.permutation import OutputCheck, find_groups
from mpcore.models.plans.axes import Axes, Run


def shuffled(channels: int, blocks: int) -> list[int]:
    run = channels // blocks
    return [block * run + i for block in range(blocks) for i in torch.randperm(run).tolist()]


def worst_change(model: nn.Module, folded: nn.Module, inputs: Tensor) -> float:
    with torch.inference_mode():
        before, after = model(inputs), folded(inputs)
    return float((before - after).abs().max() / before.abs().max())


def stirred(model: nn.Module) -> nn.Module:
    """In float64, with no parameter or statistic at the constant it was initialised to."""
    torch.manual_seed(0)
    with torch.no_grad():
        for values in (*model.parameters(), *model.buffers()):
            if values.is_floating_point():
                values.add_(0.1 * (torch.rand_like(values) - 0.5))
    return model.double().eval()


def assert_free(model: nn.Module, groups: tuple[plans.PermutationGroup, ...], inputs: Tensor) -> None:
    """Random orders of all groups leave the output alone, though it depends on the channels of each of them."""
    folded = copy.deepcopy(model)
    fold_all(folded, groups)
    assert worst_change(model, folded, inputs) <= 1e-11
    for group in groups:
        halfway = copy.deepcopy(model)
        fold_all(halfway, (replace(group, producers=(), channelwise=(), tensors=()),))
        assert worst_change(model, halfway, inputs) > 1e-9, group


def fold_all(model: nn.Module, groups: tuple[plans.PermutationGroup, ...]) -> None:
    for group in groups:
        plans.fold(model, group, shuffled(plans.channels_of(model, group), group.blocks))


TWINS = {
    "resnet18": (torchvision.models.ResNet, (torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]), 4),
    "resnet50": (torchvision.models.ResNet, (torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]), 8),
    "vit": (torchvision.models.VisionTransformer, (16, 8, 2, 2, 32, 64), 2),
    "swin": (torchvision.models.SwinTransformer, ([4, 4], 16, [1, 1], [2, 2], [2, 2]), 4),
    "convnext": (torchvision.models.ConvNeXt, ([torchvision.models.convnext.CNBlockConfig(16, 32, 2)],), 2),
    "mobilenet_v2": (torchvision.models.MobileNetV2, (5,), 17),
    "efficientnet": (
        torchvision.models.EfficientNet,
        (
            [MBConvConfig(1, 3, 1, 16, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2), FusedMBConvConfig(4, 3, 1, 16, 16, 1)],
            0.0,
        ),
        4,
    ),
}
"""Constructor, arguments, number of groups."""


@pytest.mark.parametrize("name", TWINS)
def test_the_templates_know_torchvision(name):
    build, arguments, count = TWINS[name]
    model = stirred(build(*arguments))
    groups = plans.find(model)
    assert len(groups) == count
    size = 16 if name == "vit" else 64
    assert_free(model, groups, torch.randn(2, 3, size, size, dtype=torch.float64))


@pytest.mark.parametrize(
    ("build", "shape", "least"),
    [
        (tiny_vit, (2, 1, 8, 8), 4),
        (TinyConvNet, (2, 3, 16, 16), 3),
        (lambda: timm.create_model("test_resnet", num_classes=5), (2, 3, 64, 64), 4),
        (lambda: timm.create_model("test_efficientnet", num_classes=5), (2, 3, 64, 64), 4),
        (lambda: timm.create_model("test_convnext2", num_classes=5), (2, 3, 64, 64), 4),
        (lambda: timm.create_model("test_vit2", num_classes=5), (2, 3, 64, 64), 6),
        (lambda: timm.create_model("efficientnet_lite0", num_classes=5), (2, 3, 64, 64), 16),
        (lambda: timm.create_model("efficientnet_b0", num_classes=5), (2, 3, 64, 64), 16),
        (Encoder, (2, 5, 16), 4),
    ],
)
def test_folding_random_orders_leaves_the_output_alone(build, shape, least):
    model = stirred(build())
    groups = plans.find(model)
    assert len(groups) >= least
    assert_free(model, groups, torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "ends", "count"),
    [
        ("vit_base_patch16_224", ("mlp.fc2", "attn.proj"), 24),
        ("resnet50", ("conv2", "conv3"), 32),
        ("resnet152d", ("conv2", "conv3"), 100),
        ("convnextv2_base", ("mlp.fc2",), 36),
        ("efficientnet_lite0", ("conv_pwl", "blocks.0.0.conv_pw"), 16),
        ("swin_tiny_patch4_window7_224", ("mlp.fc2", "attn.proj"), 24),
        ("deit_tiny_patch16_224", ("mlp.fc2", "attn.proj"), 24),
    ],
)
def test_every_private_layer_of_the_full_networks_is_covered(name, ends, count):
    with torch.device("meta"):
        layers = inventory(timm.create_model(name)).layers
    wanted = [layer for layer in layers if layer.name.endswith(ends)]
    assert len(wanted) == count
    assert [layer.name for layer in wanted if not layer.permutable] == []


def test_attention_heads_stay_in_their_place():
    group = next(group for group in plans.find(tiny_vit()) if group.consumers == ("blocks.0.attn.proj",))
    assert group.blocks == 2
    assert group.producers == (plans.Producer("blocks.0.attn.qkv", 64),)
    with pytest.raises(ValueError, match="out of its run of 16"):
        plans.fold(tiny_vit(), group, list(reversed(range(32))))


def test_an_order_that_is_no_permutation_is_refused():
    model = tiny_vit()
    with pytest.raises(ValueError, match=r"not a permutation of \d+ input channels"):
        plans.fold(model, plans.find(model)[0], [0] * 64)


def test_a_sequential_chain_ends_at_what_mixes_channels():
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert [group.consumers for group in plans.find(net)] == [("4",)]


@pytest.mark.parametrize(
    ("build", "shape", "private", "streams"),
    [
        (tiny_vit, (2, 1, 8, 8), 4, 1),
        (TinyConvNet, (2, 3, 16, 16), 4, 1),
        (lambda: timm.create_model("test_resnet", num_classes=5), (2, 3, 64, 64), 7, 4),
        (Encoder, (2, 5, 16), 4, 1),
    ],
)
def test_traced_groups_and_streams_leave_the_output_alone(build, shape, private, streams):
    model = stirred(build())
    inputs = torch.randn(shape, dtype=torch.float64)
    traced = plans.trace(model, inputs)
    assert (len(traced.groups), len(traced.streams)) == (private, streams)
    assert_free(model, traced.groups, inputs)
    assert_free(model, traced.streams, inputs)


def test_a_stream_of_a_vision_transformer_takes_the_embeddings_along():
    group = plans.trace(tiny_vit(), torch.zeros(2, 1, 8, 8)).streams[0]
    assert {"blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"} < set(group.consumers)
    assert {plans.TensorAxis("pos_embed", 2), plans.TensorAxis("cls_token", 2)} < set(group.tensors)


class Odd(nn.Module):
    """Reads its hidden channels by position, or in ways that no rule covers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.second = how, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.how == "steps":
            hidden = torch.cat([hidden[:, ::2].relu(), hidden[:, 1::2]], 1)
        elif self.how == "cumsum":
            hidden = hidden.cumsum(1)
        elif self.how == "view":
            hidden = hidden.view(-1, 4, 2).softmax(1).transpose(1, 2).flatten(1)
        elif self.how == "constant":
            hidden = hidden * torch.arange(8.0, dtype=hidden.dtype)
        elif self.how == "data" and float(hidden.sum()) > 0:
            hidden = -hidden
        elif self.how == "shape":
            hidden = hidden[(hidden.sum(1) > 0).nonzero()[:, 0]]
        elif self.how == "write":
            hidden[:, 2].mul_(3)
        elif self.how == "eye":
            hidden = hidden @ torch.eye(8)
        elif self.how == "output":
            return torch.cat([hidden, self.second(hidden)], 1)
        elif self.how == "einsum":
            hidden = torch.einsum("bcc->bc", hidden[:, :, None] * hidden[:, None])
        return self.second(hidden)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("steps", "an axis that is sliced in steps"),
        ("cumsum", "cumsum has no rule"),
        ("view", "split or merged"),
        ("constant", "a constant made in the forward pass"),
        ("data", "torch.export cannot follow the network"),
        ("shape", "torch.export cannot follow the network"),
        ("write", "an axis that is indexed"),
        ("output", "an output of the network"),
        ("einsum", "einsum bcc->bc"),
        ("eye", "a constant made in the forward pass"),
    ],
)
def test_what_the_trace_cannot_prove_is_refused_with_a_reason(how, reason):
    traced = plans.trace(Odd(how).eval(), torch.zeros(2, 4))
    assert not traced.groups
    assert not traced.streams
    assert reason in traced.refused["second"]


def test_tied_layers_move_together_and_once():
    net = Odd("plain")
    net.second = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net.second[2].weight = net.second[0].weight
    net = stirred(net)
    inputs = torch.randn(6, 4, dtype=torch.float64)
    (group,) = plans.trace(net, inputs).groups
    assert_free(net, (group,), inputs)


LINKS = {
    "linear": lambda: nn.Linear(8, 8),
    "relu": nn.ReLU,
    "norm": lambda: nn.LayerNorm(8),
    "groups": lambda: nn.Unflatten(1, (2, 4)),
    "flatten": nn.Flatten,
    "softmax": lambda: nn.Softmax(-1),
    "prelu": lambda: nn.PReLU(8),
    "batchnorm": lambda: nn.BatchNorm1d(8),
    "residual": lambda: Residual(nn.Linear(8, 8)),
    "rotate": lambda: Function(lambda x: torch.cat([x[..., -3:], x[..., :-3].relu()], -1)),
    "dense": lambda: Dense(nn.Linear(8, 3)),
    "gated": lambda: Gated(nn.Linear(8, 16)),
    "split": lambda: Function(lambda x: torch.cat([x.split([3, 5], -1)[1], x.split([3, 5], -1)[0].relu()], -1)),
    "twice": lambda: Function(lambda x: torch.cat([x, x], -1)[..., 4:12]),
    "einsum": lambda: Einsum(),
    "write": lambda: Function(written),
    "stack": lambda: Function(lambda x: torch.stack([x, x.roll(1, -1)], 1).amax(1)),
    "heads": lambda: Function(lambda x: x.unflatten(-1, (2, 4)).softmax(-1).flatten(-2)),
    "swap": lambda: Function(lambda x: x.unsqueeze(1).swapaxes(1, -1).expand_as(x.unsqueeze(-1)).squeeze(-1)),
}


def written(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., :4] += x[..., 4:]
    return x


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


class Dense(nn.Module):
    """The inputs but the first, beside outputs computed from all of them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., 3:], self.inner(x)], -1)


class Einsum(nn.Module):
    """A linear layer without a bias that is not an nn.Linear: its weight moves with the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi, oi -> bo", x, self.table)


class Gated(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inner(x).chunk(2, -1)
        return gate.sigmoid() * value


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@given(st.lists(st.sampled_from(sorted(LINKS)), min_size=1, max_size=7), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_whatever_the_trace_proves_in_a_random_network_is_free(links, seed):
    chain = [nn.Linear(4, 8), *(LINKS[link]() for link in links), nn.Flatten(), nn.Linear(8, 3)]
    model, inputs = stirred(nn.Sequential(*chain)), torch.randn(5, 4, dtype=torch.float64)
    try:
        model(inputs)
    except (RuntimeError, ValueError):
        return  # links that do not fit one another
    traced = plans.trace(model, inputs)
    folded = copy.deepcopy(model)
    torch.manual_seed(seed)
    fold_all(folded, traced.groups + traced.streams)
    assert worst_change(model, folded, inputs) <= 1e-11


def test_layers_that_no_template_knows_are_traced():
    groups, refused = find_groups(Odd("plain").eval(), torch.zeros(2, 4), mpcore.Recipe())
    assert [group.consumers for group in groups] == [("second",)]
    assert refused == {"first": "an input of the network"}
    groups, refused = find_groups(tiny_vit(), images(2, channels=1, size=8), mpcore.Recipe())
    assert groups == plans.find(tiny_vit())
    assert refused["blocks.0.attn.qkv"] == "reads a residual stream; permute = 'residual' reorders it"
    groups, _ = find_groups(TinyConvNet(), images(2), mpcore.Recipe())
    assert [group.consumers for group in groups if group not in plans.find(TinyConvNet())] == [("fc",)]


def test_a_network_with_permuted_streams_reloads_in_a_fresh_process(tmp_path):
    batches = [images(8, channels=1, size=8)]
    recipe = mpcore.Recipe(permute="residual", permute_rounds=4, certify_samples=4, solver="none", sequence="parallel")
    run = mpcore.prune(tiny_vit(), recipe, calibration=batches, out=tmp_path / "run", progress=False)
    streams = [group for group in run.report.plan.groups if len(group.consumers) > 1]
    assert len(streams) == 1
    assert streams[0].kept > streams[0].kept_identity
    torch.save((batches[0], run.model(batches[0])), tmp_path / "expected.pt")
    script = (
        "import sys, torch, mpcore; from nets import tiny_vit;"
        "inputs, expected = torch.load(sys.argv[2]); model = mpcore.load(sys.argv[1], tiny_vit(seed=5)).eval();"
        "torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-6)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path / "expected.pt")],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_heads_that_do_not_hold_whole_groups_stay_in_place():
    """Head width 16 does not hold a group of 32; the run goes on without that permutation."""
    recipe = mpcore.Recipe("16:32", permute_rounds=2, certify_samples=4, solver="none", sequence="parallel")
    run = mpcore.prune(tiny_vit(), recipe, calibration=[images(8, channels=1, size=8)], progress=False)
    plan = run.report.plan
    assert plan.refused["blocks.0.attn.proj"] == "a run of 16 channels is not a multiple of group = 32"
    assert [group.consumers for group in plan.groups] == [("blocks.0.mlp.fc2",), ("blocks.1.mlp.fc2",)]


@pytest.mark.parametrize("network", [TinyConvNet, tiny_vit])
def test_gathered_layers_keep_more_and_reload(network, tmp_path):
    batches = [images(16, channels=1, size=8) if network is tiny_vit else images(16)]
    options = {"permute_rounds": 4, "certify_samples": 4, "solver": "none", "sequence": "parallel"}
    run = mpcore.prune(network(), mpcore.Recipe(permute="gather", **options), calibration=batches, progress=False)
    plain = mpcore.prune(network(), mpcore.Recipe(permute=True, **options), calibration=batches, progress=False)
    gathered = [group for group in run.report.plan.groups if group.gathered]
    assert gathered
    assert len(run.report.plan.groups) == len(gathered) + len(plain.report.plan.groups)
    assert all(group.kept >= group.kept_identity and group.output_change <= 1e-12 for group in gathered)
    expected = run.model(batches[0])
    for shape in (network(), copy.deepcopy(run.model)):
        torch.testing.assert_close(mpcore.load(run.folder, shape)(batches[0]), expected, rtol=0, atol=0)
    dense = mpcore.load(run.folder, network(), which="dense")
    torch.testing.assert_close(dense(batches[0]), network().eval()(batches[0]), rtol=1e-4, atol=1e-5)
    assert mpcore.verify(run.folder).ok


def test_an_order_gathered_and_its_inverse_leave_the_layer_as_it_was():
    layer, inputs = nn.Conv2d(8, 3, 1), torch.randn(2, 8, 4, 4)
    net = nn.Sequential(copy.deepcopy(layer))
    group, order = plans.PermutationGroup(("0",), (), gathered=True), torch.arange(8).roll(3).flip(0)
    with torch.no_grad():
        plans.fold(net, group, order.tolist())
        torch.testing.assert_close(net(inputs), layer(inputs))
        assert not torch.equal(net[0].weight, layer.weight)
        plans.fold(net, group, order.argsort().tolist())
    assert torch.equal(net[0].weight, layer.weight)
    assert not net[0]._forward_pre_hooks


class Concatenating(nn.Module):
    """Dense connections and a gate: layers read runs of channels that others write."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow, self.join = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(20, 32, 1)
        self.norm, self.head = nn.BatchNorm2d(20), nn.Linear(8, 5)
        self.mix = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        joined = self.norm(torch.cat([x, self.grow(x).relu()], 1))
        gate, value = self.join(joined).mean((2, 3)).chunk(2, 1)
        return self.head(self.mix(gate.sigmoid() * value))


def test_layers_that_read_several_tensors_are_permuted_run_by_run(tmp_path):
    network = stirred(Concatenating())
    inputs = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    traced = plans.trace(network, inputs)
    assert [(group.consumers, group.starts) for group in traced.groups] == [
        (("grow", "join"), (0, 0)),
        (("join",), (8,)),
        (("head",), ()),
        (("mix",), ()),
    ]
    assert traced.groups[3].producers == (plans.Producer("join", 0), plans.Producer("join", 16))
    assert_free(network, traced.groups, inputs)
    batches = [inputs.float()]
    recipe = mpcore.Recipe(permute_rounds=4, certify_samples=4)
    run = mpcore.prune(network.float(), recipe, calibration=batches, out=tmp_path / "run", progress=False)
    assert [group.starts for group in run.report.plan.groups] == [(0, 0), (8,), ()]
    assert all(group.kept >= group.kept_identity for group in run.report.plan.groups)
    assert mpcore.verify(tmp_path / "run").ok
    dense = mpcore.load(tmp_path / "run", Concatenating(), which="dense")
    torch.testing.assert_close(dense(batches[0]), network(batches[0]), rtol=1e-4, atol=1e-5)


def test_runs_that_do_not_hold_whole_groups_stay_in_place():
    recipe = mpcore.Recipe("4:8", permute_rounds=2, certify_samples=4, solver="none", sequence="parallel")
    run = mpcore.prune(Concatenating(), recipe, calibration=[torch.randn(4, 3, 8, 8)], progress=False)
    assert "join" not in run.report.plan.refused
    assert [group.starts for group in run.report.plan.groups] == [(0, 0), ()]


class Attention(nn.Module):
    """Four heads of eight channels whose keys and values come in one of the layouts that networks have."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, width = how, {"joint": 96, "interleaved": 96, "grouped": 64, "apart": 96}[how]
        self.qkv, self.proj, self.head = nn.Linear(16, width), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        joint = self.qkv(x)
        if self.how == "joint":  # timm
            q, k, v = joint.reshape(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.how == "interleaved":  # GPT-NeoX
            q, k, v = joint.view(batch, tokens, 4, 24).transpose(1, 2).chunk(3, -1)
        elif self.how == "apart":  # Phi-3
            q, k, v = (part.view(batch, tokens, 4, 8).transpose(1, 2) for part in joint.split(32, -1))
        else:  # Llama: two heads of keys and values for four of queries
            q = joint[..., :32].view(batch, tokens, 4, 8).transpose(1, 2)
            k, v = (part.view(batch, tokens, 2, 8).transpose(1, 2) for part in joint[..., 32:].split(16, -1))
            k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).reshape(batch, 4, tokens, 8) for part in (k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, 32)
        return self.head(self.proj(mixed).relu().mean(1))


@pytest.mark.parametrize("how", ["joint", "interleaved", "apart", "grouped"])
def test_every_head_of_an_unknown_attention_has_its_own_order(how):
    network, inputs = stirred(Attention(how)), torch.randn(2, 5, 16, dtype=torch.float64)
    shared = next(group for group in plans.trace(network, inputs).groups if "proj" in group.consumers)
    groups, _ = find_groups(network, inputs, mpcore.Recipe())
    group = next(group for group in groups if "proj" in group.consumers)
    assert shared.blocks == 1
    assert plans.channels_of(network, shared) == 8
    assert group.blocks == (2 if how == "grouped" else 4)
    assert plans.channels_of(network, group) == 8 * group.blocks
    assert_free(network, (shared,), inputs)
    assert_free(network, (group,), inputs)
    right = [OutputCheck(network, inputs).refute([guess]) == {} for guess in plans.by_head(network, shared)]
    assert sum(right) == 1


def test_heads_share_an_order_where_the_output_does_not_show_them():
    """With a projection of zeros every guess leaves the output alone, right or wrong."""
    network, inputs = stirred(Attention("joint")), torch.randn(2, 5, 16, dtype=torch.float64)
    network.proj.weight.data.zero_()
    groups, _ = find_groups(network, inputs, mpcore.Recipe())
    assert next(group for group in groups if "proj" in group.consumers).blocks == 1


def test_a_network_with_grouped_heads_is_pruned_and_verified(tmp_path):
    network, batches = stirred(Attention("grouped")).float(), [torch.randn(32, 5, 16)]
    recipe = mpcore.Recipe(permute_rounds=4, certify_samples=4)
    run = mpcore.prune(network, recipe, calibration=batches, out=tmp_path / "run", progress=False)
    group = next(group for group in run.report.plan.groups if "proj" in group.consumers)
    assert (group.consumers, group.starts, len(group.order)) == (("proj", "proj"), (0, 8), 16)
    assert group.kept > group.kept_identity
    assert mpcore.verify(tmp_path / "run").ok
    dense = mpcore.load(tmp_path / "run", Attention("grouped"), which="dense")
    torch.testing.assert_close(dense(batches[0]), network(batches[0]), rtol=1e-4, atol=1e-5)


class Fake:
    """Stands for a graph's node with one tensor of so many positions."""

    def __init__(self, size: int) -> None:
        self.meta = {"val": torch.empty(size, device="meta")}


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.data())
@settings(max_examples=100, deadline=None)
def test_runs_join_what_is_tied_position_by_position(sizes, data):
    """The twin: a union-find over single positions."""
    nodes, axes = [Fake(size) for size in sizes], Axes()
    twin = {(k, i): {(k, i)} for k, size in enumerate(sizes) for i in range(size)}
    for _ in range(data.draw(st.integers(1, 6))):
        part, whole = data.draw(st.permutations(range(len(sizes))))[:2]
        if sizes[part] > sizes[whole]:
            part, whole = whole, part
        start = data.draw(st.integers(0, sizes[whole] - sizes[part]))
        axes.tie_part((nodes[whole], 0), start, (nodes[part], 0))
        for i in range(sizes[part]):
            merged = twin[whole, start + i] | twin[part, i]
            twin.update(dict.fromkeys(merged, merged))
    for k, size in enumerate(sizes):
        assert sum(run.size for run in axes.runs((nodes[k], 0))) == size
    found: dict[tuple[Run, int], set[tuple[int, int]]] = {}
    for k, node in enumerate(nodes):
        place = 0
        for run in axes.runs((node, 0)):
            for offset in range(run.size):
                found.setdefault((run, offset), set()).add((k, place))
                place += 1
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, {frozenset(group) for group in twin.values()}))
