"""Data from a name: a folder of images, or a file of arrays, as batches made when they are asked for."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpcore.checkpoint import open_weights

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Batches(Sequence[Any]):
    """Batches ``(inputs, targets)``, or ``inputs`` where there are no labels, made when they are asked for."""

    samples: Sequence[int]  # which samples, in which order
    batch_size: int
    take: Callable[[Sequence[int]], Any]

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int) or not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        start = index % len(self) * self.batch_size
        return self.take(self.samples[start : start + self.batch_size])


def load_data(
    spec: str | os.PathLike[str],
    model: nn.Module,
    *,
    batch_size: int = 32,
    seed: int | None = None,
    limit: int | None = None,
) -> Batches:
    """Batches from a folder of images or a file of arrays.

    Args:
        spec: a folder with one sub-folder per class (classes in alphabetical order), a folder of images (unlabelled),
            or a .safetensors/.npz file with ``inputs`` (n, ...) and optionally ``targets`` (n,).
        model: its timm configuration says how images are resized and normalised.
        batch_size: samples per batch.
        seed: shuffle the samples; None keeps their order.
        limit: use at most so many samples (after shuffling).

    Raises:
        FileNotFoundError: if there is nothing at ``spec``.
        ValueError: if it holds no samples, or they are malformed; names the file.
    """
    path = Path(spec)
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"data: batch_size {batch_size} and limit {limit} must be at least 1")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        count, take = _open_images(path, model)
    elif path.suffix in (".safetensors", ".npz"):
        count, take = _open_arrays(path)
    else:
        raise ValueError(f"{path}: wanted a folder of images, or a .safetensors or .npz file with 'inputs'")
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    return Batches([int(i) for i in order[:limit]], batch_size, take)


def input_size(model: nn.Module) -> tuple[int, ...]:
    """Shape of one sample, (channels, height, width), by the model's timm configuration; 3 x 224 x 224 without one."""
    import timm.data

    factory: Any = timm.data
    return tuple(factory.resolve_model_data_config(model)["input_size"])


def _open_arrays(path: Path) -> tuple[int, Callable[[Sequence[int]], Any]]:
    arrays = _read_arrays(path)
    if "inputs" not in arrays:
        raise ValueError(f"{path}: holds no 'inputs' (it has {', '.join(sorted(arrays)[:5]) or 'nothing'})")
    inputs, targets = arrays["inputs"], arrays.get("targets")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"{path}: 'inputs' of shape {inputs.shape} holds no samples; wanted (n, ...)")
    if inputs.dtype.kind == "f":
        inputs = inputs.astype(np.float32, copy=False)
    if targets is not None and (targets.shape != inputs.shape[:1] or targets.dtype.kind not in "iu"):
        raise ValueError(f"{path}: 'targets' is {targets.dtype} {targets.shape}, wanted integers ({len(inputs)},)")

    def take(index: Sequence[int]) -> Any:
        chosen = torch.from_numpy(inputs[list(index)])
        return chosen if targets is None else (chosen, torch.from_numpy(targets[list(index)].astype(np.int64)))

    return len(inputs), take


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if path.suffix == ".safetensors":
        stored = open_weights(path)
        return {name: stored[name] for name in stored if name in ("inputs", "targets")}
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a readable .npz file (no zip archive)")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in ("inputs", "targets")}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from None


def _open_images(folder: Path, model: nn.Module) -> tuple[int, Callable[[Sequence[int]], Any]]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [(file, label) for label, name in enumerate(classes) for file in _images(folder / name)]
    if not classes:
        found = [(file, -1) for file in _images(folder)]
    if not found:
        raise ValueError(f"{folder}: holds no images ({', '.join(sorted(_IMAGES))})")
    transform = _transform(model)

    def take(index: Sequence[int]) -> Any:
        inputs = torch.stack([_read_image(found[i][0], transform) for i in index])
        return (inputs, torch.tensor([found[i][1] for i in index])) if classes else inputs

    return len(found), take


def _transform(model: nn.Module) -> Callable[[Any], Tensor]:
    import timm.data

    factory: Any = timm.data  # timm declares no types for what it exports here
    transform: Callable[[Any], Tensor] = factory.create_transform(
        **factory.resolve_model_data_config(model), is_training=False
    )
    return transform


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES and file.is_file())


def _read_image(path: Path, transform: Callable[[Any], Tensor]) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from None
