from __future__ import annotations

import pytest
import torch
from nets import TinyConvNet, tiny_vit
from torch import nn

from mpcore.models.inventory import inventory


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
    (layer,) = inventory(nn.MultiheadAttention(8, 2)).layers
    assert "MultiheadAttention" in layer.reason


def test_parametrised_weights_are_left_alone():
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    (layer,) = inventory(net).layers
    assert layer.reason == "its weight is parametrised"


def test_skip_takes_globs_and_says_which_matched():
    layer = inventory(tiny_vit(), skip=["blocks.0.*"])["blocks.0.attn.qkv"]
    assert layer.reason == "matches skip = 'blocks.0.*'"


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="ReLU has no Linear and no Conv2d"):
        inventory(nn.ReLU())


def test_something_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"dict is not a torch\.nn\.Module"):
        inventory({})
