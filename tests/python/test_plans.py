from __future__ import annotations

import copy

import pytest
import timm
import torch
from nets import TinyConvNet, tiny_vit
from torch import nn

from mpcore.models import plans


def shuffled(channels: int, blocks: int) -> list[int]:
    run = channels // blocks
    return [block * run + i for block in range(blocks) for i in torch.randperm(run).tolist()]


def fold_all(model: nn.Module, groups: tuple[plans.PermutationGroup, ...]) -> None:
    for group in groups:
        channels = model.get_submodule(group.consumers[0]).weight.shape[1]
        plans.fold(model, group, shuffled(channels, group.blocks))


@pytest.mark.parametrize(
    ("build", "shape", "least"),
    [
        (tiny_vit, (2, 1, 8, 8), 4),
        (TinyConvNet, (2, 3, 16, 16), 3),
        (lambda: timm.create_model("test_resnet", num_classes=5), (2, 3, 64, 64), 4),
        (lambda: timm.create_model("test_efficientnet", num_classes=5), (2, 3, 64, 64), 2),
        (lambda: timm.create_model("test_convnext2", num_classes=5), (2, 3, 64, 64), 4),
        (lambda: timm.create_model("test_vit2", num_classes=5), (2, 3, 64, 64), 6),
    ],
)
def test_folding_random_orders_leaves_the_output_alone(build, shape, least):
    torch.manual_seed(0)
    model = build().double().eval()
    groups = plans.find(model)
    assert len(groups) >= least
    folded = copy.deepcopy(model)
    fold_all(folded, groups)
    inputs = torch.randn(shape, dtype=torch.float64)
    with torch.inference_mode():
        before, after = model(inputs), folded(inputs)
    assert float((before - after).abs().max()) <= 1e-12 * float(before.abs().max())
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), folded.parameters(), strict=True))


def test_attention_heads_stay_in_their_place():
    group = next(group for group in plans.find(tiny_vit()) if group.consumers == ("blocks.0.attn.proj",))
    assert group.blocks == 2
    assert group.producers == (plans.Producer("blocks.0.attn.qkv", 64),)
    with pytest.raises(ValueError, match="out of its run of 16"):
        plans.fold(tiny_vit(), group, list(reversed(range(32))))


def test_an_order_that_is_no_permutation_is_refused():
    model = tiny_vit()
    with pytest.raises(ValueError, match=r"not a permutation of its \d+ input channels"):
        plans.fold(model, plans.find(model)[0], [0] * 64)


def test_a_sequential_chain_ends_at_what_mixes_channels():
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert [group.consumers for group in plans.find(net)] == [("4",)]
