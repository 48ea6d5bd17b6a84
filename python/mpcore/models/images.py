"""Where encoded images lie: class folders, WebDataset tar shards, Hugging Face parquet files.

Each store gives any image by its number, so that order, limit and resumption are the same for all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".webp", ".tif", ".tiff"})


class Store(Protocol):
    """Encoded images by number, 0 to ``len(store) - 1``."""

    labels: np.ndarray[Any, Any] | None  # (n,) int64, or None where images have no labels

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``."""

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message: file and sample."""

    def arrange(self, drawn: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """The drawn samples in a random order that is cheap to read; as they are where any order is."""
        return drawn


class ImageFolder(Store):
    """One sub-folder per class, numbered in alphabetical order; or images alone, without labels."""

    def __init__(self, folder: Path) -> None:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        found = [(file, label) for label, name in enumerate(classes) for file in _files(folder / name)]
        if not classes:
            found = [(file, -1) for file in _files(folder)]
        if not found:
            raise ValueError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))}), .tar or .parquet files")
        self.files = [file for file, _ in found]
        self.labels = np.array([label for _, label in found], np.int64) if classes else None

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        """The file."""
        return self.files[index].read_bytes()

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.files[index])


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
