"""Whole checkpoints: half precision, shards, order, memory, and a Ray cluster of two workers."""

from __future__ import annotations

import json
import pickle
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


class FakeRay(types.ModuleType):
    """Ray's few functions; tasks travel as pickles and finish last in, first out."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.most = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, *, num_cpus: int, max_retries: int) -> Any:
        assert (num_cpus, max_retries) == (1, 3)

        def task(function: Any) -> Any:
            return types.SimpleNamespace(remote=lambda *arguments: pickle.dumps((function, arguments)))

        return task

    def wait(self, references: list[bytes]) -> Any:
        self.most = max(self.most, len(references))
        return references[-1:], references[:-1]

    def get(self, reference: bytes) -> Any:
        function, arguments = pickle.loads(reference)
        return function(*arguments)


def test_ray_tasks_give_the_same_bits_whatever_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real cluster of two workers is for ``make ray``."""
    import torch

    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    tensors = layers(*[(20 + i, 30) for i in range(9)])
    save(tmp_path / "model.safetensors", tensors, "bfloat16")
    halves = {name: torch.from_numpy(array).bfloat16() for name, array in tensors.items()}
    for source in (tensors, tmp_path, halves, {"count": np.zeros((3, 3), int), "bias": np.zeros(4), **tensors}):
        assert fit_edges(source, engine="ray", threads=2) == fit_edges(source)
    assert fake.most == 4
