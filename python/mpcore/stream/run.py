"""Prune a checkpoint that need not fit into memory, one file at a time, on this machine or on Ray."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mpcore import budget as budgets
from mpcore._native import __version__
from mpcore.checkpoint import Weights, header_of, open_weights, sha256
from mpcore.engine import run_jobs
from mpcore.folder import PROGRESS, RESERVED, RunFolder, check_sealed, hashes, write_text
from mpcore.pretrained import companions
from mpcore.records import Budget, LayerInventory, Manifest, MaskPlan, Pattern, atomic
from mpcore.stream.inventory import inventory_of
from mpcore.stream.masking import StoredMoments
from mpcore.stream.shard import Shard, ShardJob, prune_shard

MASKS = "masks"
SCORES = ("magnitude", "wanda", "activation")


def prune_checkpoint(
    checkpoint: str | os.PathLike[str],
    pattern: str | tuple[int, int] | Pattern,
    *,
    out: str | os.PathLike[str],
    score: str = "magnitude",
    statistics: str | os.PathLike[str] | None = None,
    skip: Sequence[str] = (),
    engine: Literal["ray"] | None = None,
    address: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Path:
    """Set the weights that N:M leaves out of every Linear of a checkpoint to +0.0, file by file, dtype kept.

    Layers are found by name (:func:`inventory_of`). ``out`` gets the pruned files under the names they had, the index,
    masks, config.json and what else lies beside the weights of a Hugging Face folder (so that ``from_pretrained`` reads
    ``out``), and the records of a run folder (docs/formats.md); the manifest comes last. The same call resumes an
    interrupted run at the first unfinished file. Result and bits depend on neither engine nor threads.

    Args:
        checkpoint: a .safetensors file, its index, or a folder that holds one.
        pattern: N:M; layers whose columns are not a multiple of M stay dense.
        out: the run folder to make or resume; with Ray, every worker must see it and ``checkpoint``.
        score: ``magnitude``, or with ``statistics`` also ``wanda`` and ``activation``.
        statistics: a safetensors file with ``LAYER.mean`` and ``LAYER.square`` of every pruned layer's inputs, such
            as calibration.safetensors of an earlier run.
        skip: globs over layer names that stay dense.
        engine: None for threads of this process, "ray" for a task per file.
        address: of a Ray cluster; None starts one here or joins the one this process is connected to.
        threads: files at a time; None is the number of cores.
        progress: a bar on stderr.

    Returns:
        The run folder.

    Raises:
        FileNotFoundError, ValueError: for a checkpoint that is absent or malformed, one with nothing to prune, weights
            that are not finite, statistics that do not fit, or a folder that holds something else.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from mpcore.checkpoint import save_tensors
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> save_tensors(folder / "model.safetensors", {"up.weight": np.array([[1, -3, 2, 0.5]], "f4")})
        >>> run = prune_checkpoint(folder, "2:4", out=folder / "run", progress=False)
        >>> open_weights(run / "model.safetensors")["up.weight"].tolist()
        [[0.0, -3.0, 2.0, 0.0]]
    """
    if score not in SCORES:
        raise ValueError(f"score {score!r} is not one of {', '.join(SCORES)}")
    if (score == "magnitude") != (statistics is None):
        raise ValueError(f"score {score!r} {'takes no' if statistics else 'needs'} statistics of the layers' inputs")
    weights, wanted = open_weights(checkpoint), Pattern(pattern)
    inventory = inventory_of(weights, skip=skip)
    budget = _budget(inventory, wanted, weights.path)
    patterns = {layer.name: layer.pattern for layer in budget.layers if layer.pattern is not None}
    _check_statistics(weights, patterns, statistics)
    recipe = {"pattern": str(wanted), "score": score, "skip": list(skip)}
    folder = RunFolder(out, {**recipe, **_identity(weights, statistics), "version": __version__})
    try:
        if folder.finished:
            _check_source(weights, check_sealed(folder.path), folder.path)
        else:
            jobs = _jobs(folder.path, weights, patterns, score, statistics)
            from mpcore.progress import progress_bar

            with progress_bar(progress, "prune", len(jobs)) as advance:
                shards = _run(jobs, folder.path, advance, engine=engine, address=address, threads=threads)
            inventory.write(folder.path / "inventory.json")
            budget.write(folder.path / "budget.json")
            _seal(folder, weights, jobs, shards, patterns, recipe)
    except Exception:
        folder.forsake()
        raise
    finally:
        folder.release()
    return folder.path


def _budget(inventory: LayerInventory, pattern: Pattern, path: Path) -> Budget:
    """The pattern for every layer that takes it; a ValueError if none does."""
    budget = budgets.uniform(inventory.layers, pattern)
    if not any(layer.pattern for layer in budget.layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in budget.layers[:3])
        raise ValueError(f"{path}: nothing to prune ({reasons})")
    return budget


def _check_statistics(weights: Weights, patterns: Mapping[str, Pattern], path: str | os.PathLike[str] | None) -> None:
    """A ValueError for statistics that do not fit a layer to prune, before anything is written."""
    if path is None:
        return
    stored = open_weights(path)
    for layer in patterns:
        try:
            StoredMoments.of(stored, layer, weights.shapes()[f"{layer}.weight"][1])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _check_source(weights: Weights, manifest: Manifest, out: Path) -> None:
    """A ValueError if a finished run began with other weights of the same names and shapes."""
    for path in weights.files():
        if sha256(path) != manifest.source["checkpoint"][path.name]:
            raise ValueError(f"{out}: holds the run of another checkpoint ({path} differs); choose another folder")


def _run(
    jobs: list[ShardJob],
    out: Path,
    advance: Callable[[str], None],
    *,
    engine: Literal["ray"] | None,
    address: str | None,
    threads: int | None,
) -> list[Shard]:
    """What became of every file, those of an earlier session included, in the order of ``jobs``."""
    found = {job.source: shard for job in jobs if (shard := _finished(job, out)) is not None}
    for source in found:
        advance(source.name)
    left = sorted((job for job in jobs if job.source not in found), key=lambda job: -job.size)
    stop = threading.Event()
    prune = prune_shard if engine else partial(prune_shard, stop=stop)
    for index, shard in run_jobs(prune, left, engine=engine, address=address, threads=threads, stop=stop):
        found[left[index].source] = shard
        advance(left[index].source.name)
    return [found[job.source] for job in jobs]


def _identity(weights: Weights, statistics: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What tells one checkpoint from another before its tensors are read: names, shapes and sizes of its files."""
    seal = hashlib.sha256()
    for path in weights.files():
        seal.update(f"{path.name} {path.stat().st_size} ".encode() + header_of(path))
    return {
        "checkpoint_sha256": seal.hexdigest(),
        "statistics_sha256": None if statistics is None else sha256(statistics),
    }


def _jobs(
    out: Path,
    weights: Weights,
    patterns: dict[str, Pattern],
    score: str,
    statistics: str | os.PathLike[str] | None,
) -> list[ShardJob]:
    jobs = []
    for source, names in weights.files().items():
        layers = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
        jobs.append(
            ShardJob(
                source=source.absolute(),
                out=(out / source.name).absolute(),
                masks=(out / MASKS / source.name).absolute(),
                record=(out / PROGRESS / f"{source.name}.json").absolute(),
                patterns={name: pattern for name, pattern in patterns.items() if name in layers},
                score=score,
                moments=None if statistics is None else Path(statistics).absolute(),
                size=source.stat().st_size,
            )
        )
    return jobs


def _finished(job: ShardJob, out: Path) -> Shard | None:
    """What an earlier session made of this file, checked against source and result; None if it did not finish it.

    Raises:
        ValueError: if the source or a result has changed since.
    """
    if not job.record.exists():
        return None
    shard = Shard.read(job.record)
    results = [(job.source, shard.source), (job.out, shard.pruned), (job.masks, shard.masks)]
    for path, seal in results:
        if seal is not None and (not path.is_file() or sha256(path) != seal):
            raise ValueError(f"{path}: has changed since the interrupted run; delete {out} and start again")
    return shard


def _seal(
    folder: RunFolder,
    weights: Weights,
    jobs: list[ShardJob],
    shards: list[Shard],
    patterns: dict[str, Pattern],
    recipe: dict[str, Any],
) -> None:
    order = {name: place for place, name in enumerate(patterns)}
    layers = sorted((layer for shard in shards for layer in shard.layers), key=lambda layer: order[layer.name])
    MaskPlan(recipe["score"], "none", "parallel", (), tuple(layers)).write(folder.path / "plan.json")
    if weights.path.name.endswith(".index.json"):
        write_text(folder.path / weights.path.name, weights.path.read_text(encoding="utf-8"))
    _copy_companions(weights.path.parent, folder.path)
    named = [job.out.name for job in jobs]
    files = dict(zip(named, (shard.pruned for shard in shards), strict=True))
    files |= {f"{MASKS}/{name}": shard.masks for name, shard in zip(named, shards, strict=True) if shard.masks}
    manifest = Manifest(
        version=__version__,
        seed=0,
        recipe=recipe,
        source={"checkpoint": dict(zip(named, (shard.source for shard in shards), strict=True))},
        patterns=patterns,
        files=dict(sorted({**hashes(folder.path, but=named), **files}.items())),
        versions={"python": platform.python_version(), "numpy": np.__version__},
    )
    folder.seal(manifest)


def _copy_companions(source: Path, out: Path) -> None:
    """What lies beside the weights, except under a name that a run folder itself has a use for."""
    for file in companions(source):
        if file.name not in RESERVED:
            with atomic(out / file.name) as temporary:
                shutil.copyfile(file, temporary)
