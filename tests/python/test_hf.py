"""Hugging Face folders: what save_pretrained wrote goes in, what from_pretrained reads comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from test_cli import document
from test_cli import run as command
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

import mpcore
from mpcore.models import accelerate as accelerating
from mpcore.models.hf import load_pretrained, save_pretrained
from mpcore.models.permutation import find_groups
from mpcore.models.source import build_model
from mpcore.models.sparse_layers import SparseLinear

logging.disable_progress_bar()
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)).save_pretrained(
        folder
    )
    (folder / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "vit"
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SMALL)).save_pretrained(folder)
    settings = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "size": {"height": 16, "width": 16}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def words() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (32, 8), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(16)]


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_a_bert_folder_is_pruned_into_a_folder_of_the_same_names_that_from_pretrained_reads(
    bert: Path, tmp_path: Path
) -> None:
    model, source = load_pretrained(bert)
    run = mpcore.prune(model, "default", calibration=words(), out=tmp_path / "run", source=source, progress=False)
    out = save_pretrained(tmp_path / "run", tmp_path / "out")
    assert names(out) == names(bert)
    assert (out / "vocab.txt").read_text() == "a\nb\n"
    assert json.loads((out / "mpcore.json").read_text())["patterns"]["bert.encoder.layer.0.output.dense"] == "2:4"
    again = BertForSequenceClassification.from_pretrained(out).eval()
    with torch.no_grad():
        assert torch.equal(again(**words()[0]).logits, run.model(**words()[0]).logits)
    zeros = again.bert.encoder.layer[0].output.dense.weight.detach().reshape(-1, 4) == 0
    assert (zeros.sum(1) >= 2).all()
    assert mpcore.verify(tmp_path / "run").ok


def test_the_command_line_takes_an_image_folder_and_prepares_pictures_as_the_folder_says(
    vit: Path, tmp_path: Path
) -> None:
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    document(command("prune", f"hf:{vit}", "-c", tmp_path / "photos", "--out", tmp_path / "run", "--json"))
    network = mpcore.load(tmp_path / "run")
    assert network.pretrained_cfg["mean"] == (0.4, 0.4, 0.4)
    assert network.pretrained_cfg["interpolation"] == "bicubic"
    groups = mpcore.records.MaskPlan.read(tmp_path / "run" / "plan.json").groups
    assert ("vit.layers.0.attention.o_proj",) in [group.consumers for group in groups]
    out = save_pretrained(tmp_path / "run", tmp_path / "out")
    assert (out / "preprocessor_config.json").exists()
    assert names(out) == names(vit)
    fits = document(command("inspect", f"hf:{vit}", "--json"))
    assert all(layer["name"] in dict(network.named_modules()) for layer in fits["layers"])


def test_a_folder_that_is_none_is_refused_by_name(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_pretrained(tmp_path)
    (bert / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    with pytest.raises(ValueError, match=r"NoSuchModel.*names no class"):
        build_model({"hf": str(bert)})
    (bert / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON document"):
        load_pretrained(bert)


def test_missing_weights_are_refused(bert: Path) -> None:
    BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)).bert.save_pretrained(
        bert
    )
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(ValueError, match=r"its weights lack 'classifier\.bias' and 1 more"):
        load_pretrained(bert)


def test_what_the_files_cannot_say_and_what_exists_is_refused(bert: Path, tmp_path: Path) -> None:
    model, source = load_pretrained(bert)
    gathering = mpcore.Recipe(permute="gather", permute_rounds=5, solver="none")
    for name, recipe in (("plain", mpcore.Recipe(permute=False, solver="none")), ("gathered", gathering)):
        mpcore.prune(model, recipe, calibration=words(), out=tmp_path / name, source=source, progress=False)
    with pytest.raises(ValueError, match="gathers channels at run time"):
        save_pretrained(tmp_path / "gathered", tmp_path / "out")
    with pytest.raises(FileExistsError, match="choose another folder"):
        save_pretrained(tmp_path / "plain", bert)
    other = tmp_path / "sourceless"
    mpcore.prune(model, mpcore.Recipe(permute=False, solver="none"), calibration=words(), out=other, progress=False)
    with pytest.raises(ValueError, match="pass like="):
        save_pretrained(other, tmp_path / "out")
    assert save_pretrained(other, tmp_path / "out", like=bert).is_dir()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.endswith(".partial")]


def test_a_decoder_with_a_cache_is_permuted_whole():
    """Its norms compute in float32, it returns a key-value cache, and two heads of queries share one of values."""
    shape = {**SMALL, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, max_position_embeddings=16, num_key_value_heads=2, **shape)
    model = LlamaForCausalLM(config).eval()
    groups, refused = find_groups(model, {"input_ids": torch.arange(24).view(2, 12)}, mpcore.Recipe(permute="residual"))
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {consumer for group in groups for consumer in group.consumers} == layers
    assert refused == {}
    heads = [group for group in groups if group.consumers[0].endswith("o_proj")]
    assert [(group.blocks, len(group.consumers)) for group in heads] == [(2, 2)] * config.num_hidden_layers


def test_a_streamed_checkpoint_is_a_folder_that_transformers_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, max_position_embeddings=16, num_key_value_heads=2, **SMALL)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "llama", max_shard_size="40KB")
    (tmp_path / "llama" / "tokenizer_config.json").write_text("{}")
    assert (tmp_path / "llama" / "generation_config.json").exists()
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    run = mpcore.prune_checkpoint(tmp_path / "llama", "2:4", out=tmp_path / "run", progress=False)
    assert (run / "tokenizer_config.json").exists()
    again, report = LlamaForCausalLM.from_pretrained(run, output_loading_info=True, dtype=torch.bfloat16)
    assert not any(report.values())
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    layer = again.model.layers[1].mlp.down_proj.weight.detach()
    dense = model.model.layers[1].mlp.down_proj.weight.detach()
    mask = mpcore.nm_mask(dense.float().abs().numpy(), "2:4")
    assert torch.equal(layer, dense * torch.from_numpy(mask))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert mpcore.verify(run).ok


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": 20}, {"crop_pct": 1.0}),
        ({"size": [16, 20]}, {"crop_pct": 1.0}),
        ({"size": {"shortest_edge": 20}, "crop_pct": None}, {"crop_pct": 0.8}),
        ({"image_mean": None, "resample": None}, {"mean": (0.5, 0.5, 0.5), "interpolation": "bilinear"}),
    ],
)
def test_older_and_empty_settings_of_pictures_are_read(
    vit: Path, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    (vit / "preprocessor_config.json").write_text(json.dumps(settings))
    found = build_model({"hf": str(vit)}).pretrained_cfg
    assert {key: found[key] for key in expected} == expected


def test_settings_that_are_none_are_named(vit: Path) -> None:
    file = vit / "preprocessor_config.json"
    for text, message in (
        ('{"resample": "soft"}', r"preprocessor_config\.json: resample = 'soft', wanted a number from 0 to 5"),
        ("[]", r"preprocessor_config\.json: holds a list, wanted an object"),
        ("{", r"preprocessor_config\.json: not a JSON document"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_pretrained(vit)


def test_an_accelerated_model_is_saved_as_the_folder_of_the_dense_one(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerating, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(accelerating, "LEAST_WHOLE", 0.0)
    model, x = ViTForImageClassification.from_pretrained(vit).eval(), torch.randn(2, 3, 16, 16)
    linear = [layer for layer in model.vit.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in linear:
            layer.weight *= torch.from_numpy(mpcore.nm_mask(layer.weight.abs().numpy(), "2:4"))
    fast = mpcore.accelerate(model, x).model
    assert sum(isinstance(layer, SparseLinear) for layer in fast.modules()) == len(linear)
    fast.save_pretrained(tmp_path / "fast")
    again = ViTForImageClassification.from_pretrained(tmp_path / "fast").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
