"""Checkpoints pruned file by file: against a plain loop, resumed, with stored statistics, and refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpcore
from mpcore import reference
from mpcore.checkpoint import open_weights, save_tensors, sha256
from mpcore.records import LayerInventory, Manifest, MaskPlan
from mpcore.roles import role_by_name
from mpcore.stream import run as stream_run
from mpcore.stream.shard import prune_shard
from mpcore.verify import verify

TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
FILES = [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]


def write_checkpoint(folder: Path, dtype: str = "bfloat16") -> Path:
    """Three files and an index; a layer of 12 columns, whose mask does not fill its last byte."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    places = {}
    for k, file in enumerate(FILES):
        tensors: dict[str, Any] = {
            f"layers.{k}.mlp.up.weight": rng.standard_normal((50, 64)).astype(TYPES[dtype]),
            f"layers.{k}.attn.q.weight": rng.standard_normal((6, 12)).astype(TYPES[dtype]),
            f"layers.{k}.norm.weight": np.ones(64, np.float32),
            f"layers.{k}.step": np.zeros((), np.int64),
            f"layers.{k}.none": np.zeros((0, 3), np.float32),
        }
        if k == 2:
            tensors |= {"lm_head.weight": rng.standard_normal((9, 64)).astype(TYPES[dtype]), "seen": np.ones(3, bool)}
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_layer_is_pruned_as_the_slow_twin_does_and_nothing_else_is_touched(tmp_path: Path, dtype: str) -> None:
    source = write_checkpoint(tmp_path / "source", dtype)
    run = mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", progress=False)
    for file in FILES:
        before, after = load_file(source / file), load_file(run / file)
        assert list(before) == list(after)
        for name, weight in before.items():
            assert after[name].dtype == weight.dtype
            expected = weight
            if name.endswith(("up.weight", "q.weight")):
                mask = reference.nm_mask(np.abs(weight.astype(np.float64)), 2, 4)
                expected = np.where(mask, weight, weight.dtype.type(0))
                packed = load_file(run / "masks" / file)[name.removesuffix(".weight")]
                bits = np.unpackbits(packed, axis=1, count=weight.shape[1], bitorder="little")
                assert np.array_equal(bits.astype(bool), mask)
            assert after[name].tobytes() == expected.tobytes()
    report = verify(run)
    assert report.ok, report.problems
    assert report.checked["groups"] == 3 * (50 * 16 + 6 * 3)
    manifest = Manifest.read(run / "manifest.json")
    assert manifest.source["checkpoint"] == {file: sha256(source / file) for file in FILES}
    assert (run / "model.safetensors.index.json").read_text() == (source / "model.safetensors.index.json").read_text()
    assert not (run / "progress").exists()


def test_shares_and_errors_are_those_of_the_whole_layer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "float32")
    run = mpcore.prune_checkpoint(source, "1:4", out=tmp_path / "run", progress=False)
    before, after = open_weights(source), open_weights(run)
    for layer in MaskPlan.read(run / "plan.json").layers:
        dense, pruned = (w[f"{layer.name}.weight"].astype(np.float64) for w in (before, after))
        assert layer.kept == np.count_nonzero(pruned)
        assert layer.kept_score == pytest.approx(np.abs(pruned).sum() / np.abs(dense).sum())
        assert layer.relative_error == pytest.approx(((dense - pruned) ** 2).sum() / (dense**2).sum())


@pytest.mark.parametrize("score", ["wanda", "activation"])
def test_stored_statistics_weigh_the_columns(tmp_path: Path, score: str) -> None:
    rng = np.random.default_rng(1)
    weight, mean = rng.standard_normal((8, 12)).astype(np.float32), rng.standard_normal(12)
    square = mean**2 + rng.random(12) * 9
    save_tensors(tmp_path / "model.safetensors", {"up.weight": weight})
    save_tensors(tmp_path / "calibration.safetensors", {"up.mean": mean, "up.square": square})
    run = mpcore.prune_checkpoint(
        tmp_path / "model.safetensors", "2:4", out=tmp_path / "run", score=score,
        statistics=tmp_path / "calibration.safetensors", progress=False,
    )  # fmt: skip
    scale = np.sqrt(square) if score == "wanda" else np.sqrt(square - mean**2)
    mask = reference.nm_mask(np.abs(weight) * scale, 2, 4)
    assert np.array_equal(open_weights(run / "model.safetensors")["up.weight"], np.where(mask, weight, 0))
    assert verify(run).ok


def test_neither_threads_nor_block_size_change_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "source")
    runs = [mpcore.prune_checkpoint(source, "2:4", out=tmp_path / f"{n}", threads=n, progress=False) for n in (1, 3)]
    assert contents(runs[0]) == contents(runs[1])
    whole = open_weights(source)
    name = "layers.0.mlp.up.weight"
    pieces = list(whole.blocks(name, values=7 * 64))
    assert [len(piece) for piece in pieces] == [7] * 7 + [1]
    assert np.array_equal(np.concatenate(pieces), np.concatenate(list(whole.blocks(name))))


def test_what_lies_beside_the_weights_of_a_hugging_face_folder_goes_along(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    beside = {
        "config.json": b"{}",
        "tokenizer.json": b"\xf0\x9f\xa4\x97",
        "LICENSE": b"free",
        "chat_template.jinja": b"{{ }}",
    }
    others = {"plan.json": b"mine", "pytorch_model.bin": b"pickle", ".gitattributes": b""}
    for name, data in (beside | others).items():
        (source / name).write_bytes(data)
    (source / "original").mkdir()
    run = mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", progress=False)
    assert {name: (run / name).read_bytes() for name in beside} == beside
    assert not {"pytorch_model.bin", ".gitattributes", "original"} & {entry.name for entry in run.iterdir()}
    assert MaskPlan.read(run / "plan.json").layers
    assert verify(run).ok
    (run / "config.json").write_text("{ }")
    assert [problem.what.split(":")[0] for problem in verify(run).problems] == ["config.json has changed"]


def test_nothing_is_taken_from_a_folder_without_a_config(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    (source / "notes.txt").write_text("mine")
    run = mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", progress=False)
    assert not (run / "notes.txt").exists()


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_run_resumes_at_the_first_unfinished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    source = write_checkpoint(tmp_path / "source")
    whole = mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "whole", progress=False)
    started: list[str] = []

    def cut(job: Any, **_: Any) -> Any:
        started.append(job.out.name)
        if len(started) > done:
            raise KeyboardInterrupt
        return prune_shard(job)

    monkeypatch.setattr(stream_run, "prune_shard", cut)
    with pytest.raises(KeyboardInterrupt):
        mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", threads=1, progress=False)
    assert verify(tmp_path / "run").problems[0].what.startswith("manifest.json is missing")
    finished, left = started[:done], []
    monkeypatch.setattr(stream_run, "prune_shard", lambda job, **_: left.append(job.out.name) or prune_shard(job))
    mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", threads=1, progress=False)
    assert sorted(finished + left) == FILES
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.parametrize("which", ["source", "run", "run/masks"])
def test_a_file_that_changed_between_sessions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    source = write_checkpoint(tmp_path / "source")
    monkeypatch.setattr(stream_run, "_seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", progress=False)
    file = tmp_path / which / FILES[1]
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors: has changed since the interrupted run"):
        mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", progress=False)


def test_verify_names_what_was_changed(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "float32")
    run = mpcore.prune_checkpoint(source, "2:4", out=tmp_path / "run", progress=False)
    tensors = dict(load_file(run / FILES[0]))
    weight = tensors["layers.0.mlp.up.weight"]
    row, column = np.argwhere(weight == 0)[-1]
    weight[row, column] = 1e-3
    save_file(tensors, run / FILES[0])
    problems = verify(run).problems
    assert any("has changed: SHA-256" in problem.what for problem in problems)
    (found,) = [problem for problem in problems if problem.layer]
    assert (found.layer, found.group) == ("layers.0.mlp.up", row * 16 + column // 4)
    assert "pruned weights are not +0.0" in found.what
    (run / FILES[1]).unlink()
    assert any(problem.what.startswith(f"{FILES[1]} is missing") for problem in verify(run).problems)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    weight = np.ones((4, 8), np.float32)
    weight[2, 3] = np.nan
    save_tensors(tmp_path / "model.safetensors", {"up.weight": weight})
    with pytest.raises(ValueError, match=r"model\.safetensors: layer up, rows from 0: score: entry \(2, 3\) is nan"):
        mpcore.prune_checkpoint(tmp_path / "model.safetensors", "2:4", out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_roles_and_reasons_follow_from_names(tmp_path: Path) -> None:
    names = {
        "model.embed_tokens": ((9, 8), "embedding: "),
        "transformer.wte": ((9, 8), "embedding: "),
        "h.0.attn.c_attn": ((8, 24), "stored as (in, out)"),
        "h.0.attn.c_proj": ((8, 8), "stored as (in, out)"),
        "layers.0.mlp.gate": ((4, 8), "router"),
        "layers.0.mlp.gate_proj": ((4, 8), ""),
        "layers.0.self_attn.q_proj": ((8, 8), ""),
        "layers.0.mlp.odd": ((8, 8), "matches skip = '*odd'"),
        "lm_head": ((9, 8), "classifier head"),
        "stem.conv": ((4, 8, 3, 3), "convolution"),
        "whole": ((4, 8), "its weight is I32"),
    }
    tensors = {
        f"{name}.weight": np.ones(shape, np.int32 if name == "whole" else np.float32)
        for name, (shape, _) in names.items()
    }
    save_tensors(tmp_path / "model.safetensors", tensors)
    run = mpcore.prune_checkpoint(
        tmp_path / "model.safetensors", "2:4", out=tmp_path / "run", skip=("*odd",), progress=False
    )
    found = {layer.name: layer for layer in LayerInventory.read(run / "inventory.json").layers}
    assert set(found) == set(names)
    for name, (_, reason) in names.items():
        assert found[name].reason.startswith(reason)
        assert found[name].prunable == (reason == "")
    assert role_by_name("model.layers.0.mlp.experts.3.up_proj") == "mlp"


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "model.safetensors", tmp_path / "run"
    save_tensors(source, {"up.weight": np.ones((4, 6), np.float32)})
    with pytest.raises(ValueError, match=r"nothing to prune \(up: 6 columns is not a multiple of 4\)"):
        mpcore.prune_checkpoint(source, "2:4", out=out, progress=False)
    with pytest.raises(ValueError, match="score 'wanda' needs statistics"):
        mpcore.prune_checkpoint(source, "2:4", out=out, score="wanda", progress=False)
    with pytest.raises(ValueError, match="score 'taylor' is not one of"):
        mpcore.prune_checkpoint(source, "2:4", out=out, score="taylor", progress=False)
    save_tensors(tmp_path / "stats.safetensors", {"up.mean": np.ones(5), "up.square": np.ones(5)})
    with pytest.raises(ValueError, match=r"layer up: 'up.mean' has shape \(5,\), wanted \(6,\)"):
        mpcore.prune_checkpoint(
            source, "1:2", out=out, score="wanda", statistics=tmp_path / "stats.safetensors", progress=False
        )
    save_tensors(tmp_path / "bias.safetensors", {"bias": np.ones(4)})
    with pytest.raises(ValueError, match=r"holds no '\*\.weight'"):
        mpcore.prune_checkpoint(tmp_path / "bias.safetensors", "2:4", out=out, progress=False)


def test_a_glob_of_skip_that_matches_nothing_and_a_bare_string_are_refused(tmp_path: Path) -> None:
    source, out = write_checkpoint(tmp_path / "source"), tmp_path / "run"
    with pytest.raises(ValueError, match=r"skip: 'layer\.\*' matches no layer; the first are layers\.0\.mlp\.up, "):
        mpcore.prune_checkpoint(source, "2:4", out=out, skip=["*up", "layer.*"], progress=False)
    with pytest.raises(TypeError, match=r"skip: '\*up' is a string, wanted a sequence of globs: \('\*up',\)"):
        mpcore.prune_checkpoint(source, "2:4", out=out, skip="*up", progress=False)
    assert not out.exists()


def test_a_finished_run_of_other_weights_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for expected in (None, "holds the run of another checkpoint"):
        save_tensors(tmp_path / "model.safetensors", {"up.weight": rng.standard_normal((4, 8)).astype("f4")})
        for _ in range(2 if expected is None else 1):
            with nullcontext() if expected is None else pytest.raises(ValueError, match=expected):
                mpcore.prune_checkpoint(tmp_path, "2:4", out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(("dtype", "size"), [("f2", 1e-7), ("f4", 1e-44), ("f4", 1e37), ("f8", 1e-320), ("f8", 1e307)])
def test_shares_and_errors_do_not_depend_on_the_scale_of_the_weights(tmp_path: Path, dtype: str, size: float) -> None:
    weight = np.random.default_rng(0).integers(1, 9, (4, 8)).astype(dtype)
    scaled = weight * np.asarray(size, dtype)
    layers = []
    for name, values in (("plain", scaled / np.abs(scaled).max()), ("scaled", scaled)):
        save_tensors(tmp_path / f"{name}.safetensors", {"up.weight": values.astype(dtype)})
        run = mpcore.prune_checkpoint(tmp_path / f"{name}.safetensors", "2:4", out=tmp_path / name, progress=False)
        layers.append(MaskPlan.read(run / "plan.json").layers[0])
    plain, moved = layers
    assert 0 < moved.relative_error < 1
    assert moved.relative_error == pytest.approx(plain.relative_error, rel=1e-2)
    assert moved.kept_score == pytest.approx(plain.kept_score, rel=1e-2)


def test_a_call_that_was_refused_leaves_the_folder_to_the_corrected_one(tmp_path: Path) -> None:
    weights = {"up.weight": np.ones((4, 8), "f4"), "down.weight": np.full((4, 8), np.nan, "f4")}
    save_tensors(tmp_path / "w.safetensors", weights)
    for name, length in (("bad", 7), ("good", 8)):
        moments = {f"{layer}.{part}": np.ones(length) for layer in ("up", "down") for part in ("mean", "square")}
        save_tensors(tmp_path / f"{name}.safetensors", moments)

    def prune(**how: Any) -> Path:
        return mpcore.prune_checkpoint(tmp_path / "w.safetensors", "2:4", out=tmp_path / "run", progress=False, **how)

    with pytest.raises(ValueError, match=r"bad\.safetensors: layer down: 'down\.mean' has shape \(7,\)"):
        prune(score="wanda", statistics=tmp_path / "bad.safetensors")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="layer down"):
        prune(score="wanda", statistics=tmp_path / "good.safetensors")
    assert not (tmp_path / "run").exists()
    assert (prune(skip=["down"]) / "manifest.json").is_file()
