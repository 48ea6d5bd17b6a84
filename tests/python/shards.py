"""The same few images as class folders, WebDataset tar shards and Hugging Face parquet files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SAMPLES = 23
CLASSES = 3


def png(number: int) -> bytes:
    """An image whose every pixel says which sample it is."""
    file = io.BytesIO()
    Image.new("RGB", (20, 24), (10 * number, 255 - 10 * number, number)).save(file, "png")
    return file.getvalue()


def label(number: int) -> int:
    return number * CLASSES // SAMPLES


def write_folder(folder: Path) -> Path:
    for number in range(SAMPLES):
        file = folder / f"class{label(number)}" / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    return folder


def write_tar(file: Path, members: Mapping[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def write_shards(folder: Path) -> Path:
    for shard, numbers in enumerate(np.array_split(np.arange(SAMPLES), 3)):
        members = {}
        for number in numbers.tolist():
            members |= {f"a/{number:04}.cls": f"{label(number)}\n".encode(), f"a/{number:04}.png": png(number)}
            members[f"a/{number:04}.json"] = b"{}"
        write_tar(folder / f"train-{shard:05}.tar", {"a/._0000.png": b"resource fork"} | members)
    return folder


def write_parquet(file: Path, columns: Mapping[str, Any], rows: int = 4) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), file, row_group_size=rows)
    return file


def write_dataset(folder: Path) -> Path:
    for shard, numbers in enumerate(np.array_split(np.arange(SAMPLES), 2)):
        pictures = [{"bytes": png(n), "path": f"{n}.png"} for n in numbers.tolist()]
        columns = {"image": pictures, "label": [label(n) for n in numbers.tolist()]}
        write_parquet(folder / "data" / f"train-{shard:05}-of-00002.parquet", columns)
    (folder / "README.md").write_text("---\n")
    return folder


WRITERS = {"folder": write_folder, "shards": write_shards, "parquet": write_dataset}
