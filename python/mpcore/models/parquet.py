"""Parquet files as Hugging Face datasets write them, read by row groups."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpcore.models.images import Store

_WINDOW = 1 << 28
"""Bytes of row groups a reader of parquet keeps, and among which it shuffles: 1600 images of ImageNet at 160 kB."""


class ParquetFiles(Store):
    """Hugging Face's parquet: one column of images, ``struct<bytes, path>`` or binary, and integers in ``label``.

    Files whose only other columns are no integers have no labels. Parquet is read by row groups: the last ones are
    kept, and a shuffled order stays for a while among as many as are kept.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        groups: list[tuple[int, int, int, int]] = []  # file, row group, rows, bytes
        labels: list[np.ndarray[Any, Any]] = []
        for number, file in enumerate(self.files):
            table = _open_parquet(file)
            self.column, label = _columns(table.schema_arrow, file)
            for group in range(table.num_row_groups):
                meta = table.metadata.row_group(group)
                groups.append((number, group, meta.num_rows, meta.total_byte_size))
            if label is not None:
                labels.append(_labels(table.read(columns=[label], use_threads=False).column(0), file))
        self.groups = np.array(groups, np.int64).reshape(-1, 4)
        self.starts = np.concatenate([[0], np.cumsum(self.groups[:, 2])])
        if len(self) == 0:
            raise ValueError(f"{self.files[0]}: holds no rows, nor do the {len(self.files) - 1} others")
        self.labels = np.concatenate(labels) if labels else None
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(
                f"{self.files[0].parent}: some of the {len(self.files)} files have labels, others have none"
            )
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, index: int) -> bytes:
        """The entry of the image column, from a row group kept or read now."""
        group = self._group(index)
        value = self._rows(group)[index - int(self.starts[group])].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise ValueError(f"{self.name(index)}: no bytes in column {self.column!r}")
        return bytes(data)

    def name(self, index: int) -> str:
        """File and row."""
        file = int(self.groups[self._group(index), 0])
        before = int(self.groups[self.groups[:, 0] < file, 2].sum())
        return f"{self.files[file]}: row {index - before}"

    def arrange(self, drawn: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """Row groups in an order drawn by ``rng``; the samples of those that ``_WINDOW`` holds as they were drawn."""
        visit = rng.permutation(len(self.groups))
        window = np.empty(len(visit), np.int64)
        window[visit] = np.cumsum(self.groups[visit, 3]) // _WINDOW
        groups = np.searchsorted(self.starts, drawn, side="right") - 1
        return drawn[np.argsort(window[groups], kind="stable")]

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _rows(self, group: int) -> Any:
        """The images of a row group, kept until ``_WINDOW`` bytes of others have been asked for since."""
        if group not in self._kept:
            file, number, _, _ = self.groups[group].tolist()
            self._kept[group] = (
                _open_parquet(self.files[file])
                .read_row_group(number, columns=[self.column], use_threads=False)
                .column(0)
            )
            while len(self._kept) > 1 and sum(rows.nbytes for rows in self._kept.values()) > _WINDOW:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ImportError(f"{path}: parquet needs pyarrow; install mpcore[data]") from None
    try:
        return ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a whole parquet file ({error})") from None


def _columns(schema: Any, path: Path) -> tuple[str, str | None]:
    """Names of the column with images and of the one with labels."""
    from pyarrow import types

    def image(field: Any) -> bool:
        kind: Any = field.type
        return bool(
            types.is_binary(kind)
            or types.is_large_binary(kind)
            or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        )

    images = [field.name for field in schema if image(field)]
    integers = [field.name for field in schema if types.is_integer(field.type)]
    if len(images) != 1:
        what = f"{len(images)} columns of images" if images else "no column of images (struct<bytes, path> or binary)"
        raise ValueError(f"{path}: has {what}, wanted 1; its columns are {', '.join(schema.names)}")
    if "label" not in schema.names and integers:
        raise ValueError(f"{path}: no column 'label'; its columns are {', '.join(schema.names)}")
    if "label" in schema.names and "label" not in integers:
        raise ValueError(f"{path}: column 'label' holds {schema.field('label').type}, wanted integers")
    return images[0], "label" if "label" in integers else None


def _labels(column: Any, path: Path) -> np.ndarray[Any, Any]:
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise ValueError(f"{path}: row {row}: no label")
    labels: np.ndarray[Any, Any] = column.to_numpy().astype(np.int64)
    if (labels < 0).any():
        row = (labels < 0).argmax()
        raise ValueError(f"{path}: row {row}: label {labels[row]} is not a class number from 0")
    return labels
