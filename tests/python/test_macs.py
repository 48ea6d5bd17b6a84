from __future__ import annotations

import pytest
import timm
import torch
from nets import TinyConvNet, images, tiny_vit
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mpcore import nm_mask
from mpcore.models import tome
from mpcore.models.apply import as_matrix, from_matrix, hold_masks
from mpcore.models.macs import MacReport, macs
from mpcore.models.sparse_layers import SparseConv2d, SparseLinear
from mpcore.pattern import Pattern


def shapes_only(name: str) -> tuple[nn.Module, Tensor]:
    """A timm model without any numbers in it, and its input."""
    with torch.device("meta"):
        return timm.create_model(name), torch.empty(1, 3, 224, 224)


def block_layers(model: nn.Module) -> dict[str, str]:
    return {n: "2:4" for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")}


def prune(model: nn.Module, names: list[str], pattern: str) -> None:
    masks = {}
    for name in names:
        weight = model.get_submodule(name).weight
        matrix = as_matrix(weight)
        masks[name] = from_matrix(nm_mask(abs(matrix), pattern), weight.shape)
    hold_masks(model, masks)


# golden numbers: docs/method.md and arithmetic by hand


def test_vit_b_16_dense_and_2_4():
    model, x = shapes_only("vit_base_patch16_224")
    dense = macs(model, x)
    d, n = 768, 197
    assert dense.total == 12 * (12 * d * d * n + 2 * n * n * d) + d * d * 196 + d * 1000 == 17_563_828_224
    assert dense.attention == 12 * 2 * n * n * d
    assert (dense.reduction, dense.speedup_bound, dense.uncounted) == (0.0, 1.0, ())
    assert macs(model, x, patterns=block_layers(model)).reduction == pytest.approx(0.476, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "paper", "exact"),
    [
        ("vit_base_patch16_224", 0.598071, 0.6110),
        ("deit_small_patch16_224", 0.5857, 0.5980),
        ("deit_tiny_patch16_224", 0.5640, 0.5753),
        ("vit_large_patch16_224", 0.729, 0.742),
    ],
)
def test_token_merging_and_2_4_in_both_conventions(name, paper, exact):
    model, x = shapes_only(name)
    tome.apply(model, r=8)
    for convention, expected in (("paper", paper), ("exact", exact)):
        report = macs(model, x, convention, patterns=block_layers(model))
        # As many digits as are published.
        assert report.reduction == pytest.approx(expected, abs={0.598071: 5e-7, 0.6110: 5e-5}.get(expected, 6e-4))


def test_token_merging_of_vit_b_16_alone():
    model, x = shapes_only("vit_base_patch16_224")
    tome.apply(model, r=8)
    assert macs(model, x, "paper").reduction == pytest.approx(0.228135, abs=1e-6)
    assert macs(model, x, "exact").reduction == pytest.approx(0.2539, abs=1e-4)
    assert macs(model, x, "paper", patterns=block_layers(model)).total == pytest.approx(7.059407e9, abs=500)
    assert tome.merged_per_block(model) == (8,) * 12


def test_resnet50_by_layer_kind():
    model, x = shapes_only("resnet50")
    assert macs(model, x).total == pytest.approx(4.089e9, abs=1e6)
    pointwise = {
        n: "2:4"
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))
    }
    square = {n: "2:4" for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
    assert macs(model, x, patterns=pointwise).reduction == pytest.approx(0.259, abs=1e-3)
    assert macs(model, x, patterns=pointwise | square).reduction == pytest.approx(0.486, abs=1e-3)


def test_windowed_attention_counts_by_window():
    model, x = shapes_only("swin_tiny_patch4_window7_224")
    report = macs(model, x)
    n, d = 49, 96
    first = next(layer for layer in report.layers if layer.kind == "attention")
    assert first.dense == 64 * 2 * n * n * d
    assert report.total == pytest.approx(4.5e9, rel=0.02)


# properties


@pytest.mark.parametrize("batch", [1, 3])
def test_counts_are_per_sample(batch):
    model = tiny_vit()
    assert macs(model, images(batch, channels=1, size=8)) == macs(model, images(5, channels=1, size=8))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "5:8"])
def test_patterns_are_read_off_the_weights(pattern):
    model, x = TinyConvNet(), images(1)
    names = ["blocks.0._expand_conv", "blocks.1._project_conv", "tail.0", "tail.3", "fc"]
    dense = macs(model, x)
    prune(model, names, pattern)
    report = macs(model, x)
    density = {"2:4": 0.5, "4:8": 0.5, "1:4": 0.25, "5:8": 0.625}[pattern]
    for before, after in zip(dense.layers, report.layers, strict=True):
        assert after.macs == before.macs * (density if after.name in names else 1)
        assert after.dense == before.dense
    assert report.baseline == dense.total
    assert macs(model, x, patterns=dict.fromkeys(names, pattern)).total == report.total


def test_accidental_and_all_zeros_are_not_a_pattern():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[0, :2] = 0
        model[1].weight.zero_()
    assert [layer.pattern for layer in macs(model, torch.zeros(1, 16)).layers] == [None, None]


def test_layers_that_never_run_are_listed_and_modes_are_restored():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Identity())
    model[2].spare = nn.Linear(4, 4)
    model.train()
    model[1].eval()
    report = macs(model, torch.zeros(2, 4))
    assert report.uncounted == ("2.spare",)
    assert [model.training, model[1].training, model[0].training] == [True, False, True]
    assert not model[0]._forward_hooks


def test_a_layer_called_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert macs(nn.Sequential(layer, layer), torch.zeros(1, 4)).total == 32


def test_accelerated_layers_count_as_the_dense_ones():
    model, x = TinyConvNet(), images(2)
    names = ["blocks.0._expand_conv", "blocks.1._project_conv", "tail.0", "tail.3", "fc"]
    prune(model, names, "2:4")
    expected = macs(model, x)
    for name in names:
        layer = model.get_submodule(name)
        parent, _, child = name.rpartition(".")
        sparse = SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear
        setattr(model.get_submodule(parent), child, sparse(layer, Pattern("2:4")))
    assert macs(model, x) == expected


@pytest.mark.parametrize("name", ["cait_xxs24_224", "vit_base_patch16_rope_224"])
def test_attention_of_kinds_that_are_not_counted_is_listed(name):
    model, x = shapes_only(name)
    report = macs(model, x)
    assert report.attention == 0
    assert "blocks.0.attn" in report.uncounted
    assert macs(nn.TransformerEncoderLayer(8, 2, 16).eval(), torch.zeros(3, 2, 8)).uncounted[-1] == "self_attn"


def test_a_layer_called_by_keyword_counts():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(input=x)

    assert macs(Keyword(), torch.zeros(3, 4)).total == 8


# rejection


def test_mistakes_are_named():
    model, x = tiny_vit(), images(1, channels=1, size=8)
    with pytest.raises(TypeError, match="example_input: a dict, wanted one torch tensor"):
        macs(model, {"x": x})
    with pytest.raises(ValueError, match="convention: 'rough', wanted 'exact' or 'paper'"):
        macs(model, x, "rough")
    with pytest.raises(ValueError, match=r"patterns: 'blocks\.0\.attn' is no Linear or Conv2d of the model"):
        macs(model, x, patterns={"blocks.0.attn": "2:4"})
    with pytest.raises(ValueError, match="model: ReLU runs no Linear"):
        macs(nn.ReLU(), x)
    with pytest.raises(ValueError, match=r"example_input: an empty batch, shape \(0, 1, 8, 8\)"):
        macs(model, x[:0])


def test_the_report_is_plain():
    report = macs(nn.Linear(4, 2), torch.zeros(1, 4))
    assert isinstance(report, MacReport)
    assert (report.total, report.layers[0].kind, report.layers[0].name) == (8, "linear", "")


class Experts(nn.Module):
    """As Hugging Face's Mixtral: the weights of all experts in one tensor."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.ones(2, 8, 4))

    def forward(self, x):
        return x @ self.up.sum(0).T


def test_weights_of_kinds_that_are_not_counted_are_listed():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(4, 4), Experts(), nn.LayerNorm((8,)))
    assert macs(model, torch.zeros(2, 4, 1)).uncounted == ("0", "3")


def test_attention_of_language_models_is_listed():
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    report = macs(LlamaForCausalLM(config).eval(), torch.zeros(1, 3, dtype=torch.long))
    assert report.uncounted == ("model.layers.0.self_attn",)
