"""Sparse layers go in where they were measured faster, and say why where they were not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import images, tiny_vit
from pruned import prune
from torch import nn

from mpcore import _native
from mpcore.masks import nm_mask
from mpcore.models import accelerate as module
from mpcore.models import timings
from mpcore.models.accelerate import accelerate
from mpcore.models.eligible import find_pattern
from mpcore.models.sparse_layers import SparseLinear
from mpcore.records import SpeedReport


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sparse layer counts as faster, so that no test depends on the clock."""
    monkeypatch.setattr(module, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(module, "LEAST_WHOLE", 0.0)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_GAIN", float("inf"))


@pytest.mark.parametrize(
    "pattern", ["1:2", "2:4", "1:4", "4:8", "1:8", "6:12", "8:16", "1:32", "1:5", "1:20", "3:10", "5:24"]
)
def test_the_pattern_is_found_in_the_weights(pattern: str) -> None:
    weight = torch.randn(64, 960, generator=torch.Generator().manual_seed(0))
    mask = torch.from_numpy(nm_mask(weight.abs(), pattern))
    assert str(find_pattern(weight * mask)) == pattern


def test_a_dense_weight_has_no_pattern() -> None:
    assert find_pattern(torch.ones(3, 96)) is None
    assert find_pattern(torch.zeros(3, 37)) is None


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_model_computes_the_same_for_any_batch(dtype: torch.dtype) -> None:
    model = prune(tiny_vit(), "2:4").to(dtype)
    x = images(3, channels=1, size=8).to(dtype)
    fast = accelerate(model, x)
    used = [row for row in fast.report.rows() if row["backend"] == "cpu"]
    assert len(used) == 8
    assert all(row["eligible"] and row["gain"] == row["dense_s"] / row["sparse_s"] for row in used)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert fast.difference < tolerance
    with torch.inference_mode():
        assert torch.allclose(fast.model(x[:1]), model(x[:1]), atol=tolerance)
    assert isinstance(fast.model.blocks[0].mlp.fc1, SparseLinear)
    assert isinstance(model.blocks[0].mlp.fc1, nn.Linear)


@pytest.mark.usefixtures("never")
def test_what_is_not_faster_stays_dense() -> None:
    fast = accelerate(prune(tiny_vit(), "2:4"), images(3, channels=1, size=8))
    assert {row["backend"] for row in fast.report.rows()} == {"dense"}
    assert fast.difference == 0.0
    assert "the gain over" in next(row["reason"] for row in fast.report.rows() if row["layer"] == "blocks.0.mlp.fc1")


class Odd(nn.Module):
    """Layers that cannot run sparse, each for its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.hooked, self.unused, self.plain = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.hooked.register_forward_hook(lambda *_: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.hooked(x))


@pytest.mark.usefixtures("always")
def test_every_layer_left_alone_has_its_reason() -> None:
    reasons = {row["layer"]: row["reason"] for row in accelerate(Odd(), torch.randn(2, 8)).report.rows()}
    assert "with hooks" in reasons["hooked"]
    assert "does not call it" in reasons["unused"]
    assert "no N:M pattern: 0 %" in reasons["plain"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), "a convolution in 2 groups"),
        (nn.Conv2d(8, 8, 3, padding="same"), "padding 'same' in mode 'zeros'"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "padding (1, 1) in mode 'reflect'"),
        (nn.Conv2d(3, 8, 3), "no N:M pattern: 0 %"),
    ],
)
def test_convolutions_that_stay_dense_have_their_reason(layer: nn.Conv2d, reason: str) -> None:
    row = accelerate(layer, torch.randn(2, layer.in_channels, 6, 6)).report.rows()[0]
    assert (row["backend"], row["eligible"]) == ("dense", False)
    assert reason in row["reason"]


def test_what_is_faster_without_sparsity_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Any, key: str, calls: dict[str, Any]) -> dict[str, float]:
        known = {"sparse": 2.0, "the dense model in bfloat16": 1.0}
        medians = {name: known.get(name, 3.0) for name in calls}
        return medians | {timings.quartile(name): seconds for name, seconds in medians.items()}

    monkeypatch.setattr(module.Timings, "measure", measure)
    notes = accelerate(prune(nn.Linear(16, 8), "2:4"), torch.randn(5, 16)).report.notes
    assert notes == ("the dense model in bfloat16 is 2.00 times as fast as the layer sparse, and needs no sparsity",)


@pytest.mark.usefixtures("always")
def test_a_model_that_is_one_linear_is_replaced_whole() -> None:
    layer = prune(nn.Linear(16, 8), "1:4")
    x = torch.randn(5, 16)
    fast = accelerate(layer, x)
    assert isinstance(fast.model, SparseLinear)
    assert torch.allclose(fast.model(x), layer(x), atol=1e-6)
    with pytest.raises(RuntimeError, match="have no gradients"):
        fast.model(x.requires_grad_())


def test_a_layer_is_faster_by_medians_and_by_lower_quartiles() -> None:
    times = {"dense": 8.0, "sparse": 4.0}
    quartiles = {"dense, lower quartile": 3.0, "sparse, lower quartile": 2.0}
    assert timings.sure_gain({**times, **quartiles}, "dense") == 1.5
    assert timings.sure_gain({**times, **quartiles, "sparse": 8.0}, "dense") == 1.0


def test_a_model_that_is_slower_as_a_whole_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(module, "LEAST_WHOLE", float("inf"))
    model, x = prune(tiny_vit(), "2:4"), images(3, channels=1, size=8)
    fast = accelerate(model, x)
    assert not any(isinstance(layer, SparseLinear) for layer in fast.model.modules())
    rows = [row for row in fast.report.rows() if row["gain"] is not None]
    assert rows
    assert all(row["backend"] == "dense" and "the whole model is not faster" in row["reason"] for row in rows)
    assert fast.difference == 0.0


@pytest.mark.usefixtures("always")
def test_a_table_of_timings_is_believed_and_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "timings.json", images(3, channels=1, size=8)
    model = prune(tiny_vit(), "2:4")
    first = accelerate(model, x, table=path)
    known = json.loads(path.read_text())["timings"]
    assert len(known) == 6  # four layers, the whole model, and what is free

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr(timings, "interleave", refuse)
    assert accelerate(model, x, table=path).report == first.report
    path.write_text('{"timings": [3]}')
    with pytest.raises(ValueError, match=r"timings\.json: not a table"):
        accelerate(model, x, table=path)


@pytest.mark.usefixtures("always")
def test_a_table_is_not_believed_under_other_settings(tmp_path: Path) -> None:
    path, x = tmp_path / "timings.json", torch.randn(3, 16)

    def keys(bias: bool = True) -> set[str]:
        accelerate(prune(nn.Linear(16, 8, bias=bias), "2:4"), x, table=path)
        return set(json.loads(path.read_text())["timings"])

    plain = keys()
    assert all(f"torch {torch.__version__}, mpcore {_native.__version__}, " in key for key in plain)
    assert keys() == plain
    more = keys(bias=False)
    assert more > plain
    with torch.autocast("cpu", torch.bfloat16):
        lowered = keys() - more
    assert lowered
    assert all("autocast to torch.bfloat16" in key for key in lowered)
    torch.set_float32_matmul_precision("high")
    try:
        assert any("float32 products in high precision" in key for key in keys())
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("always")
def test_the_report_is_json_and_html() -> None:
    report = accelerate(prune(nn.Linear(16, 8), "2:4"), torch.randn(5, 16)).report
    again = SpeedReport.from_json(report.to_json())
    assert again.layers == report.layers
    assert "<table>" in report.to_html()
    assert "2:4, measured faster" in report.to_html()


def test_a_back_end_that_cannot_run_is_refused() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 8)
    with pytest.raises(ValueError, match="'cslt' cannot run here: the 2:4 kernels need a CUDA device"):
        accelerate(layer, x, backend="cslt")
    with pytest.raises(ValueError, match="'mkl' is not one of"):
        accelerate(layer, x, backend="mkl")
