"""Whole checkpoints: half precision, shards, order, memory, and a Ray cluster of two workers."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRay

from mpcore import fit_edge, fit_edges
from mpcore.checkpoint import Weights

Array = np.ndarray[Any, Any]


def save(path: Path, tensors: dict[str, Array], dtype: str) -> None:
    """A safetensors file, in torch's own writer where NumPy has no such type."""
    import torch
    from safetensors.torch import save_file

    save_file({name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in tensors.items()}, path)


def layers(*shapes: tuple[int, int]) -> dict[str, Array]:
    return {
        f"layer{i}.weight": np.random.default_rng(i).standard_normal(shape, np.float32)
        for i, shape in enumerate(shapes)
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_stored_precision_is_fitted_as_stored(dtype: str, tmp_path: Path) -> None:
    import torch

    tensors = layers((30, 50), (64, 20))
    save(tmp_path / "model.safetensors", tensors, dtype)
    report = fit_edges(tmp_path)
    assert list(report) == sorted(tensors)
    for name, array in tensors.items():
        assert report[name] == fit_edge(torch.from_numpy(array).to(getattr(torch, dtype)))


def test_a_sharded_index_is_one_checkpoint(tmp_path: Path) -> None:
    tensors = layers((30, 50), (64, 20), (16, 16))
    names = list(tensors)
    places = dict(zip(names, ["a.safetensors", "b.safetensors", "a.safetensors"], strict=True))
    for shard in ("a.safetensors", "b.safetensors"):
        save(tmp_path / shard, {name: tensors[name] for name in names if places[name] == shard}, "bfloat16")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    report = fit_edges(index, threads=2)
    assert list(report) == names
    whole = tmp_path / "whole"
    whole.mkdir()
    save(whole / "model.safetensors", tensors, "bfloat16")
    assert dict(report) == dict(fit_edges(whole))


@pytest.mark.parametrize("engine", [None, "ray"])
def test_what_cannot_be_read_is_skipped_with_its_reason(
    engine: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    tensors = {name: torch.from_numpy(array) for name, array in layers((20, 30), (30, 20), (25, 25)).items()}
    tensors["layer1.weight"] = tensors["layer1.weight"].to(torch.float8_e4m3fn)
    tensors["bias"] = torch.zeros(4, dtype=torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors")
    stored, given = (fit_edges(source, engine=engine, threads=2) for source in (tmp_path, tensors))
    assert list(stored) == list(given) == ["layer0.weight", "layer2.weight"]
    assert set(stored.skipped) == set(given.skipped) == {"layer1.weight", "bias"}
    assert "tensor 'layer1.weight' is F8_E4M3; convert it" in stored.skipped["layer1.weight"]
    assert given.skipped["layer1.weight"] == "W: dtype float8_e4m3fn is not float16, bfloat16, float32 or float64"


def test_a_file_that_is_gone_is_an_error_not_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model.safetensors", layers((20, 30)), "float32")

    def gone(self: Weights, name: str) -> Array:
        raise FileNotFoundError(name)

    monkeypatch.setattr(Weights, "__getitem__", gone)
    with pytest.raises(FileNotFoundError):
        fit_edges(tmp_path)


@pytest.mark.parametrize("engine", [None, "ray"])
def test_what_is_no_array_is_skipped_by_its_type(engine: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    report = fit_edges({"a": [[1.0, 2.0], [3.0, 5.0]], "b": np.float64(1), **layers((20, 30))}, engine=engine)
    assert list(report) == ["layer0.weight"]
    assert report.skipped == {
        "a": "list: only arrays and tensors are fitted",
        "b": "0 dimensions: only matrices and 4-dimensional convolutions are fitted",
    }


def test_a_module_in_half_precision_is_fitted_by_module_name() -> None:
    import torch

    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        model = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.LayerNorm(60)).to(dtype)
        report = fit_edges(model)
        assert list(report) == ["0"]
        assert report["0"] == fit_edge(model[0].weight)


def test_the_largest_is_read_first_and_no_more_than_threads_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = layers((20, 20), (90, 100), (40, 50), (30, 200), (10, 10))
    save(tmp_path / "model.safetensors", tensors, "bfloat16")
    asked: list[str] = []
    read = Weights.__getitem__
    monkeypatch.setattr(Weights, "__getitem__", lambda self, name: (asked.append(name), read(self, name))[1])
    fit_edges(tmp_path, threads=1)
    assert asked == sorted(tensors, key=lambda name: -tensors[name].size)


def test_memory_is_bounded_by_the_matrices_in_flight(tmp_path: Path) -> None:
    tensors = layers(*[(256, 512)] * 24)
    save(tmp_path / "model.safetensors", tensors, "bfloat16")
    size = 256 * 512 * 4
    fit_edges(tmp_path, threads=1)  # what is imported at the first call is not counted
    tracemalloc.start()
    report = fit_edges(tmp_path, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(report) == 24
    # NumPy's share of one fit: the stored halves, their float32, and the whitened copy; a float64 copy would add two.
    assert peak < 5 * size, f"{peak / size:.1f} matrices at a time"


def test_one_matrix_uses_all_threads_and_gives_the_same_bits() -> None:
    tensors = layers((120, 300))
    assert fit_edges(tensors, threads=4) == fit_edges(tensors, threads=1)


def test_ray_tasks_give_the_same_bits_whatever_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real cluster of two workers is for ``make ray``."""
    import torch

    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    tensors = layers(*[(20 + i, 30) for i in range(9)])
    save(tmp_path / "model.safetensors", tensors, "bfloat16")
    halves = {name: torch.from_numpy(array).bfloat16() for name, array in tensors.items()}
    for source in (tensors, tmp_path, halves, {"count": np.zeros((3, 3), int), "bias": np.zeros(4), **tensors}):
        assert fit_edges(source, engine="ray", threads=2) == fit_edges(source)
