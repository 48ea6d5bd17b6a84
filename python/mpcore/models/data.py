"""Data from a name: images in folders, tar shards or parquet, or a file of arrays, as batches made when asked for."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mpcore.checkpoint import open_weights
from mpcore.models.batches import Part, share_of, split
from mpcore.models.images import ImageFolder, Store
from mpcore.models.parquet import ParquetFiles
from mpcore.models.tarshards import TarShards

_STORES: dict[str, Any] = {".tar": TarShards, ".parquet": ParquetFiles}


class Samples(Protocol):
    """Samples by number."""

    def __len__(self) -> int: ...

    def take(self, index: Sequence[int]) -> Any:
        """These samples as a batch: ``(inputs, targets)``, or ``inputs`` where there are no labels."""

    def arrange(self, drawn: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """The drawn samples in a random order that is cheap to read."""


@dataclass(frozen=True)
class Batches(Sequence[Any]):
    """Batches ``(inputs, targets)``, or ``inputs`` where there are no labels, made when they are asked for.

    Iterating makes them in ``workers`` other processes, a few ahead, in the same order and with the same bits.
    """

    samples: Samples
    order: Sequence[int]  # which samples, in which order
    batch_size: int
    workers: int = 0
    share: tuple[int, int] | None = None  # (rank, count): makes Parts, of this rank's samples alone

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int) or not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        start = index % len(self) * self.batch_size
        chosen = self.order[start : start + self.batch_size]
        if self.share is None:
            return self.samples.take(chosen)
        own = chosen[share_of(len(chosen), *self.share)]
        inputs, targets = split(self.samples.take(own)) if own else (torch.empty(0), None)
        return Part(inputs, targets, len(chosen))

    def __iter__(self) -> Iterator[Any]:
        if not self.workers:
            yield from (self[index] for index in range(len(self)))
            return
        # A generator of its own: the seeds of the workers must not be drawn from the training's.
        loader = DataLoader(_Careful(self), batch_size=None, num_workers=self.workers, generator=torch.Generator())
        for batch in loader:
            if isinstance(batch, _Refusal):
                raise ValueError(batch.message)
            yield batch

    def part(self, rank: int, count: int) -> Batches:
        """The same batches, of each only the samples that process ``rank`` of ``count`` works on."""
        return replace(self, share=(rank, count))


@dataclass(frozen=True)
class _Refusal:
    """A ValueError on its way out of a worker."""

    message: str


@dataclass(frozen=True)
class _Careful(Dataset[Any]):
    """Batches for a worker, where an error must come back as one line."""

    batches: Batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.batches[index]
        except ValueError as error:
            return _Refusal(str(error))


def load_data(
    spec: str | os.PathLike[str],
    model: nn.Module,
    *,
    batch_size: int = 32,
    seed: int | None = None,
    limit: int | None = None,
    workers: int = 0,
) -> Batches:
    """Batches of images or of a file of arrays.

    Args:
        spec: a folder with one sub-folder per class (classes in alphabetical order) or of images alone (unlabelled);
            WebDataset shards (.tar), or Hugging Face parquet files (extra ``data``): one file, a folder of them or a
            glob such as ``shards/train-*.tar``; or a .safetensors/.npz file with ``inputs`` (n, ...) and optionally
            ``targets`` (n,).
        model: its timm configuration says how images are resized and normalised.
        batch_size: samples per batch.
        seed: shuffle the samples; None keeps their order.
        limit: use at most so many samples (after shuffling).
        workers: processes that read and decode; 0 does it in this one.

    Raises:
        FileNotFoundError: if there is nothing at ``spec``.
        ImportError: for parquet without pyarrow.
        ValueError: if it holds no samples, several kinds of files or splits, or they are malformed; names the file, of
            shards and parquet also the sample.
    """
    path = Path(spec)
    if batch_size < 1 or workers < 0 or (limit is not None and limit < 1):
        raise ValueError(f"data: batch_size {batch_size} and limit {limit} must be at least 1, workers {workers} 0")
    if path.is_file() and path.suffix in (".safetensors", ".npz"):
        samples: Samples = _Arrays(path)
    else:
        samples = _Images(open_store(path), _transform(model))
    order = np.arange(len(samples))[:limit]
    if seed is not None:
        rng = np.random.default_rng(seed)
        order = samples.arrange(rng.permutation(len(samples))[:limit], rng)
    return Batches(samples, order.tolist(), batch_size, workers)


def open_store(path: Path) -> Store:
    """The images of a folder, a file or a glob such as ``imagenet/data/train-*.parquet``, told by what is there.

    Raises:
        FileNotFoundError: if a glob matches nothing.
        ValueError: if there are no images, files of several kinds or splits, or one that is malformed; names it.
    """
    if path.is_dir():
        places = [folder for folder in (path, path / "data") if folder.is_dir()]
        files = sorted(file for place in places for file in place.iterdir() if file.suffix in _STORES)
        if not files:
            return ImageFolder(path)
    elif path.is_file():
        files = [path]
    elif not (files := sorted(path.parent.glob(path.name))):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if other := [file for file in files if file.suffix != files[0].suffix]:
        raise ValueError(f"{path}: holds {files[0].name} and {other[0].name}; name the files of one kind by a glob")
    if files[0].suffix not in _STORES:
        raise ValueError(
            f"{path}: wanted a folder of images, .tar shards, .parquet files, or one .safetensors or .npz file"
        )
    splits = {re.sub(r"[-_.]?\d+(-of-\d+)?$", "", file.stem): file for file in files}
    if len(splits) > 1:
        raise ValueError(
            f"{path}: holds {len(splits)} sets of files ({', '.join(sorted(splits))}); name one by a glob: "
            f"{files[0].parent / max(splits)}*{files[0].suffix}"
        )
    store: Store = _STORES[files[0].suffix](files)
    return store


def input_size(model: nn.Module) -> tuple[int, ...]:
    """Shape of one sample, (channels, height, width), as timm knows it; 3 x 224 x 224 where it knows nothing."""
    return tuple(_image_config(model)["input_size"])


def _image_config(model: nn.Module) -> dict[str, Any]:
    """How images are prepared: the model's timm configuration, with the size it was built for (``img_size=``)."""
    import timm.data

    factory: Any = timm.data  # timm declares no types for what it exports here
    config: dict[str, Any] = factory.resolve_model_data_config(model)
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return config if built_for is None else config | {"input_size": (config["input_size"][0], *built_for)}


class _Arrays:
    """The samples of a file of arrays."""

    def __init__(self, path: Path) -> None:
        arrays = _read_arrays(path)
        if "inputs" not in arrays:
            raise ValueError(f"{path}: holds no 'inputs' (it has {', '.join(sorted(arrays)[:5]) or 'nothing'})")
        inputs, targets = arrays["inputs"], arrays.get("targets")
        if inputs.ndim < 2 or len(inputs) == 0:
            raise ValueError(f"{path}: 'inputs' of shape {inputs.shape} holds no samples; wanted (n, ...)")
        if targets is not None and (targets.shape != inputs.shape[:1] or targets.dtype.kind not in "iu"):
            raise ValueError(f"{path}: 'targets' is {targets.dtype} {targets.shape}, wanted integers ({len(inputs)},)")
        self.inputs = inputs.astype(np.float32, copy=False) if inputs.dtype.kind == "f" else inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Sequence[int]) -> Any:
        chosen = torch.from_numpy(self.inputs[list(index)])
        if self.targets is None:
            return chosen
        return chosen, torch.from_numpy(self.targets[list(index)].astype(np.int64))

    def arrange(self, drawn: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return drawn


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if path.suffix == ".safetensors":
        stored = open_weights(path)
        return {name: stored[name] for name in stored if name in ("inputs", "targets")}
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a readable .npz file (no zip archive)")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in ("inputs", "targets")}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from None
    if odd := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{path}: its {odd[0]!r} is not an array")
    return arrays


@dataclass(frozen=True)
class _Images:
    """The samples of a store of encoded images."""

    store: Store
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.store)

    def take(self, index: Sequence[int]) -> Any:
        inputs = torch.stack([self._decode(i) for i in index])
        labels = self.store.labels
        return inputs if labels is None else (inputs, torch.from_numpy(labels[list(index)]))

    def arrange(self, drawn: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return self.store.arrange(drawn, rng)

    def _decode(self, index: int) -> Tensor:
        from PIL import Image, UnidentifiedImageError

        data = self.store.read(index)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return self.transform(_rgb(image))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unknown = isinstance(error, UnidentifiedImageError)  # whose message is the address of the buffer
            reason = "of no format Pillow knows" if unknown else error
            raise ValueError(f"{self.store.name(index)}: not a readable image ({reason})") from None


def _rgb(image: Any) -> Any:
    """A Pillow image in 8 bits of red, green and blue; of 16 bits the upper 8, where Pillow clips to white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32 bits of no known range (mode {image.mode}), wanted 8 or 16 bits")
    return image.convert("RGB")


def _transform(model: nn.Module) -> Callable[[Any], Tensor]:
    import timm.data

    factory: Any = timm.data
    transform: Callable[[Any], Tensor] = factory.create_transform(**_image_config(model), is_training=False)
    return transform
