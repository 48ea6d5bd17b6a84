from __future__ import annotations

import copy
import re

import pytest
import torch
from nets import TinyConvNet, tiny_vit
from torch import nn
from torch.nn.utils import parametrizations, prune

import mpcore
from mpcore.models import plans
from mpcore.models.inventory import check_copyable, inventory


def test_every_linear_and_conv_is_listed_with_a_reason_if_left_alone():
    layers = inventory(TinyConvNet()).layers
    assert [layer.name for layer in layers if not layer.prunable] == [
        "stem",
        "blocks.0._depthwise_conv",
        "blocks.1._depthwise_conv",
        "fc",
    ]
    assert all(bool(layer.reason) != layer.prunable for layer in layers)


def test_roles_of_a_vision_transformer():
    roles = {layer.name: layer.role for layer in inventory(tiny_vit()).layers}
    assert roles["patch_embed.proj"] == "stem"
    assert roles["blocks.1.attn.qkv"] == "attention"
    assert roles["blocks.0.mlp.fc1"] == "mlp"
    assert roles["head"] == "head"


def test_tied_weights_are_left_alone_and_named():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    reasons = [layer.reason for layer in inventory(net).layers]
    assert reasons == ["its weight is shared with 2", "its weight is shared with 0"]


def test_layers_inside_multihead_attention_are_left_alone():
    layers = inventory(nn.MultiheadAttention(8, 2)).layers
    assert [(layer.name, layer.prunable) for layer in layers] == [("", False), ("out_proj", False)]
    assert all("MultiheadAttention" in layer.reason for layer in layers)


def test_parametrised_weights_are_left_alone():
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    (layer,) = inventory(net).layers
    assert layer.reason == "its weight is parametrised"


def test_a_parametrised_weight_is_not_computed():
    net = nn.Sequential(nn.Linear(8, 4), nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 4, 3, groups=2))).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert [layer.shape for layer in inventory(net).layers] == [(4, 8), (4, 4, 3, 3)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_weight_without_a_shape_is_named_with_what_to_do():
    net = nn.Sequential(nn.Linear(4, 8), nn.LazyLinear(8))
    with pytest.raises(ValueError, match=r"model: 1\.weight has no shape yet \(lazy module\); run the model once"):
        inventory(net)
    with pytest.raises(ValueError, match=r"model: 1\.weight has no shape yet"):
        mpcore.prune(net, "default", calibration=[torch.randn(8, 4)], progress=False)


def test_skip_takes_globs_and_says_which_matched():
    layer = inventory(tiny_vit(), skip=["blocks.0.*"])["blocks.0.attn.qkv"]
    assert layer.reason == "matches skip = 'blocks.0.*'"


def test_a_glob_of_skip_that_matches_nothing_and_a_bare_string_are_refused():
    with pytest.raises(ValueError, match=r"skip: 'block\.\*' matches no layer; the first are patch_embed\.proj, "):
        inventory(tiny_vit(), skip=["block.*"])
    with pytest.raises(TypeError, match=r"skip: 'head' is a string, wanted a sequence of globs: \('head',\)"):
        inventory(tiny_vit(), skip="head")


def test_a_head_or_stem_that_is_asked_for_by_name_is_prunable():
    found = inventory(TinyConvNet(), named=("*", "fc", "stem", "blocks.0._depthwise_conv"))
    assert (found["fc"].role, found["fc"].prunable) == ("head", True)
    assert (found["stem"].role, found["stem"].prunable) == ("stem", True)
    assert not found["blocks.0._depthwise_conv"].prunable


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "prune.remove(layer, 'weight')"),
        (torch.nn.utils.spectral_norm, "remove_spectral_norm(layer, 'weight')"),
        (torch.nn.utils.weight_norm, "remove_weight_norm(layer, 'weight')"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_a_hook_computes_are_left_alone_with_what_to_do(wrap, remedy):
    net = nn.Sequential(nn.Linear(8, 8), wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8))
    net(torch.zeros(2, 8))
    told = f"its weight is computed by a hook; call torch.nn.utils.{remedy} first"
    assert inventory(net)["1"].reason == told
    assert [group.consumers for group in plans.find(net)] == []
    assert [group.consumers for group in plans.at_run_time(net, ())] == [("0",), ("3",)]
    with pytest.raises(ValueError, match=re.escape(f"layer 1: {told}")):
        check_copyable(net)
    with torch.no_grad():  # the weight is then no part of a graph
        net(torch.zeros(2, 8))
    check_copyable(net)
    copy.deepcopy(net)


def test_a_module_that_keeps_an_activation_is_named():
    class Keeps(nn.Sequential):
        def forward(self, x):
            self.kept = super().forward(x)
            return self.kept

    net = nn.Sequential(Keeps(nn.Linear(4, 4)))
    check_copyable(net)
    net(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="module '0': its attribute 'kept' is part of an autograd graph"):
        check_copyable(net)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="ReLU has no Linear and no Conv2d"):
        inventory(nn.ReLU())


def test_something_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model: a dict, wanted a torch\.nn\.Module; build the module"):
        inventory({})


def test_the_conv1d_of_gpt2_is_listed_with_what_to_do_and_its_linear_twin_is_prunable():
    utils = pytest.importorskip("transformers.pytorch_utils")
    net = nn.Sequential(utils.Conv1D(16, 8), nn.ReLU(), nn.Linear(16, 4))
    assert [(layer.shape, layer.prunable) for layer in inventory(net).layers] == [((16, 8), False), ((4, 16), True)]
    assert "put an nn.Linear of the transposed weight" in inventory(net)["0"].reason
    twin = nn.Linear(8, 16)
    twin.load_state_dict({"weight": net[0].weight.T.contiguous(), "bias": net[0].bias})
    inputs = torch.randn(3, 8)
    torch.testing.assert_close(twin(inputs), net[0](inputs))
    net[0] = twin
    assert [layer.prunable for layer in inventory(net).layers] == [True, True]


def test_an_inventory_is_a_mapping_by_name():
    found = inventory(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    assert (list(found), len(found), tuple(found.values())) == (["0", "2"], 2, found.layers)
    assert "2" in found
    assert "1" not in found


def test_weights_that_share_their_memory_are_left_alone():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    net[2].weight = nn.Parameter(net[0].weight.data)
    assert inventory(net)["0"].reason == "its weight is shared with 2"
    run = mpcore.prune(net, mpcore.Recipe(), calibration=[torch.randn(32, 8)], progress=False)
    assert [layer.name for layer in run.report.plan.layers] == ["4"]


def test_weights_on_meta_share_nothing():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert [layer.prunable for layer in inventory(net).layers] == [True, True]


class Gated(nn.Module):
    """A network whose head is defined first, with gates called ``fc`` inside its blocks, and two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"kind": nn.Linear(16, 10), "place": nn.Linear(16, 4)})
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(16, 16), "fc": nn.Linear(16, 16)}) for _ in range(2))


def heads(model: nn.Module) -> list[str]:
    return [layer.name for layer in inventory(model).layers if layer.role == "head"]


def test_what_is_called_a_head_is_one_only_if_no_other_takes_its_outputs():
    stack = [nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)]
    assert heads(nn.ModuleDict({"features": nn.Linear(8, 24), "classifier": nn.Sequential(*stack)})) == ["classifier.4"]
    assert heads(Gated()) == ["heads.kind", "heads.place"]
    assert heads(nn.ModuleDict({"head": nn.Linear(16, 16), "head_dist": nn.Linear(16, 16)})) == ["head", "head_dist"]
    chain = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    assert heads(nn.ModuleDict({"classifier": chain})) == ["classifier.1"]
    convolutions = nn.Sequential(nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(16, 32, 1))
    assert heads(nn.ModuleDict({"head": convolutions, "fc": nn.Linear(32, 5)})) == ["fc"]


def test_layers_of_other_kinds_are_listed_with_the_reason():
    model = nn.ModuleDict({"conv": nn.Conv3d(4, 8, 3), "rnn": nn.LSTM(8, 6), "fc": nn.Linear(6, 2)})
    found = inventory(model)
    assert [(layer.name, layer.kind, layer.prunable) for layer in found.layers[:2]] == [
        ("conv", "conv3d", False),
        ("rnn", "lstm", False),
    ]
    assert found["conv"].reason == "a Conv3d: only the weights of Linear and Conv2d are pruned"
    answer = parametrizations.spectral_norm(nn.Linear(48, 2))
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), answer)
    with pytest.raises(ValueError, match=r"nothing to prune \(0: a Conv1d: only .*; 3: its weight"):
        mpcore.prune(net, "magnitude", calibration=[torch.randn(8, 4, 8)], progress=False)


def test_a_torchscript_module_is_refused():
    with pytest.warns(FutureWarning):
        script = torch.jit.trace(nn.Linear(4, 2), torch.ones(1, 4))
    with pytest.raises(TypeError, match="model: a TorchScript module; pass the Python module it was made from"):
        inventory(script)
