"""The paper's structured table: every recipe runs on a small network of its family, and fits the full one's layers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch

import mpcore
from mpcore.budget import uniform
from mpcore.models import tome
from mpcore.models.inventory import inventory
from mpcore.models.permutation import interleave
from mpcore.models.recipe import Recipe
from mpcore.reference import kept_score

VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 96, "depth": 2, "num_heads": 2, "num_classes": 10}
SMALL = {
    "vit": lambda: timm.models.VisionTransformer(**VIT),
    "resnet": lambda: timm.models.ResNet(
        timm.models.resnet.Bottleneck, (1, 1, 1, 1), channels=(16, 16, 32, 32), num_classes=10
    ),
    "convnextv2": lambda: timm.models.ConvNeXt(
        depths=(1, 1, 1, 1), dims=(16, 16, 32, 32), num_classes=10, use_grn=True, ls_init_value=None
    ),
}
FULL = {
    "paper-vit-b-magnitude-2to4": "vit_base_patch16_224",
    "paper-vit-b-2to4": "vit_base_patch16_224",
    "paper-vit-b-6to12": "vit_base_patch16_224",
    "paper-vit-l-2to4": "vit_large_patch16_224",
    "paper-vit-l-8to16": "vit_large_patch16_224",
    "paper-deit-2to4": "deit_tiny_patch16_224",
    "paper-resnet-castconv": "resnet50",
    "paper-resnet-castconv-perm": "resnet152d",
    "paper-resnet-8to16": "resnet101d",
    "paper-convnextv2-2to4": "convnextv2_base",
    "paper-convnextv2-8to16": "convnextv2_base",
    "paper-convnextv2-12to16": "convnextv2_base",
}


def test_every_row_has_a_network():
    assert sorted(FULL) == [name for name in Recipe.names() if name.startswith("paper-")]


@pytest.mark.parametrize("name", sorted(FULL))
def test_the_full_network_takes_the_pattern_nearly_everywhere(name):
    with torch.device("meta"):
        layers = inventory(timm.create_model(FULL[name])).layers
    prunable = sum(layer.parameters for layer in layers if layer.prunable)
    budget = uniform(layers, Recipe.named(name).pattern)
    taken = [layer for layer, entry in zip(layers, budget.layers, strict=True) if entry.pattern is not None]
    assert sum(layer.parameters for layer in taken) > 0.99 * prunable


@pytest.mark.parametrize("name", [*sorted(FULL), "rmt-2025"])
def test_one_batch_of_random_images_goes_through_a_small_network_of_the_family(name):
    family = next((kind for kind in SMALL if kind in name.replace("deit", "vit")), "vit")
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    run = mpcore.prune(SMALL[family](), name, calibration=[images], progress=False)
    pattern = Recipe.named(name).pattern
    patterns = {layer.name: layer.pattern for layer in run.report.budget.layers if layer.pattern is not None}
    assert len(patterns) >= 4
    for layer, chosen in patterns.items():
        weight = run.model.get_submodule(layer).weight.detach().numpy()
        mpcore.check_mask(np.moveaxis(weight, 1, -1) != 0, chosen)
        assert str(chosen) == pattern or name == "rmt-2025"
    assert mpcore.verify(run.folder).ok


def test_a_recipe_with_token_merging_certifies_evaluates_reloads_and_distils_the_merging_network():
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    dense = timm.models.VisionTransformer(**{**VIT, "img_size": 64})
    recipe = mpcore.Recipe(tome=3)
    run = mpcore.prune(dense, recipe, calibration=[images], evaluation=[(images, labels)], progress=False)
    assert tome.merged_per_block(run.model) == (3, 3)
    assert tome.merged_per_block(dense) == ()
    assert run.report.certificate.layers[-1].name == "token merging"
    reloaded = mpcore.load(run.folder, timm.models.VisionTransformer(**{**VIT, "img_size": 64}))
    with torch.no_grad():
        merged = run.model(images)
        assert torch.equal(reloaded(images), merged)
        with tome.suspended(run.model):
            assert not torch.allclose(run.model(images), merged)
    student = mpcore.distill(run, [(images, labels)], epochs=1, progress=False).model
    assert tome.merged_per_block(student) == (3, 3)
    assert tome.merged_per_block(mpcore.load(run.folder, copy.deepcopy(student), which="dense")) == ()
    assert mpcore.verify(run.folder).ok


def test_token_merging_is_refused_at_once_where_there_are_no_tokens():
    with pytest.raises(ValueError, match="recipe: tome = 8, but model: Sequential is not a timm VisionTransformer"):
        mpcore.prune(torch.nn.Sequential(torch.nn.Linear(8, 8)), mpcore.Recipe(tome=8), calibration=[torch.ones(2, 8)])


def test_interleaving_gives_every_group_a_column_of_each_run():
    scores = np.random.default_rng(0).random((5, 16)).astype(np.float32) * np.arange(1, 17, dtype=np.float32)
    found = interleave(scores, mpcore.Pattern("2:4"))
    ranks = np.argsort(np.argsort(-scores.sum(0, dtype=np.float64)))[found.order]
    np.testing.assert_array_equal(ranks.reshape(-1, 4) // 4, np.tile(np.arange(4), (4, 1)))
    assert found.kept == kept_score(scores, found.order, 2, 4)
    assert found.kept_identity == pytest.approx(kept_score(scores, np.arange(16), 2, 4), rel=1e-6)
