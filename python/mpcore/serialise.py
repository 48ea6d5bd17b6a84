"""Records as versioned JSON, and files that are written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError

from mpcore.html import of_record, one_line
from mpcore.pattern import Pattern

FORMAT = 1
"""Version of every file of a run folder; a reader refuses a newer one."""

INFINITE = ("inf", "-inf")
"""How infinities are written: JSON has no number for them. NaN is null."""

AnyRecord = TypeVar("AnyRecord", bound="Record")


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` and rename it to ``path`` once the block ends well.

    An error or Ctrl-C inside the block removes the temporary file, so ``path`` is either whole or as it was before. An
    error of the safetensors library comes out as OSError.

    Example:
        >>> import pathlib, tempfile
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # some writers leave a file that only its owner can read
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, SafetensorError):
            raise OSError(f"{target}: {error}") from None
        if isinstance(error, OSError) and error.filename in (temporary, str(temporary)):
            raise OSError(error.errno, error.strerror, str(target)) from None  # the name that the caller gave
        raise


@dataclass(frozen=True)
class Record:
    """A frozen dataclass that reads and writes itself as versioned JSON."""

    kind: ClassVar[str] = "record"

    def __init_subclass__(cls) -> None:
        """A record prints in one line; ``dataclass`` leaves a ``__repr__`` that is there already."""
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Record.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Every field by name, long ones shortened."""
        return one_line(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers; NaN becomes None, infinities "inf" and "-inf"."""
        return typing.cast(dict[str, Any], to_plain(self))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return of_record(self)

    def to_json(self) -> str:
        """One JSON document with ``format`` and ``kind`` in front."""
        return json.dumps({"format": FORMAT, "kind": self.kind, **self.to_dict()}, indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls: type[AnyRecord], data: dict[str, Any]) -> AnyRecord:
        """Rebuild a record; unknown keys are refused, so that a typing error is not a silent default."""
        return typing.cast(AnyRecord, from_plain(cls, data, cls.kind))

    @classmethod
    def from_json(cls: type[AnyRecord], text: str) -> AnyRecord:
        """Parse what :meth:`to_json` wrote.

        Raises:
            ValueError: if the text is not JSON, of another kind, or of a newer format.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{cls.kind}: not a JSON document ({error})") from None
        if not isinstance(data, dict) or data.get("kind") != cls.kind:
            found = data.get("kind") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"expected a record of kind {cls.kind!r}, found {found!r}")
        if not isinstance(data.get("format"), int) or data["format"] > FORMAT:
            raise ValueError(f"{cls.kind}: format {data.get('format')!r} is newer than {FORMAT}; update mpcore")
        return cls.from_dict({key: value for key, value in data.items() if key not in ("format", "kind")})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` through a temporary name."""
        with atomic(path) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def read(cls: type[AnyRecord], path: str | os.PathLike[str]) -> AnyRecord:
        """Read the file :meth:`write` wrote; a ValueError names the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None


def to_rows(records: Iterable[Any]) -> list[dict[str, Any]]:
    """Dataclasses as flat dictionaries, one each, for ``pandas.DataFrame`` or ``polars.DataFrame``.

    Intervals become two columns, other sequences of numbers stay lists, records inside are left out. NaN becomes None,
    infinities stay numbers.
    """
    rows = []
    for record in records:
        row: dict[str, Any] = {}
        for key, value in to_cells(record).items():
            if key.endswith("_ci"):
                row |= dict(zip((f"{key}_low", f"{key}_high"), value or (None, None), strict=True))
            elif not isinstance(value, dict):
                row[key] = value
        rows.append(row)
    return rows


def to_plain(value: Any) -> Any:
    """Records, tuples and numpy values as plain JSON data; NaN becomes None, infinities "inf" and "-inf"."""
    return _plain(value, str)


def to_cells(value: Any) -> Any:
    """The same for tables, where infinities stay numbers."""
    return _plain(value, float)


def _plain(value: Any, infinite: Callable[[float], Any]) -> Any:
    if isinstance(value, Pattern):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), infinite) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(entry, infinite) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, infinite) for entry in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist(), infinite)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else infinite(float(value))
    return value


def from_plain(wanted: Any, value: Any, where: str) -> Any:
    """Turn plain JSON data back into the annotated type ``wanted``."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return from_plain(next(a for a in arguments if a is not type(None)), value, where)
    if wanted is Pattern:
        return Pattern(value)
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
        hints = typing.get_type_hints(wanted)
        names = {f.name for f in dataclasses.fields(wanted)}
        if unknown := sorted(set(value) - names):
            raise ValueError(f"{where}: unknown field {unknown[0]!r}")
        missing = sorted(
            f.name
            for f in dataclasses.fields(wanted)
            if f.name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        )
        if missing:
            raise ValueError(f"{where}: field {missing[0]!r} is missing")
        return typing.cast(Any, wanted)(**{k: from_plain(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, found {type(value).__name__}")
        inner = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
        pairs = zip(value, [inner] * len(value) if inner is not None else arguments, strict=True)
        return tuple(from_plain(kind, entry, where) for entry, kind in pairs)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
        return {key: from_plain(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    return _build_scalar(wanted, value, where)


def _build_scalar(wanted: Any, value: Any, where: str) -> Any:
    if wanted is float and value is None:  # NaN; infinities too in older files
        return math.nan
    if wanted is float and isinstance(value, str) and value in INFINITE:
        return float(value)
    if wanted is float and type(value) is int:
        if abs(value) > sys.float_info.max:
            raise ValueError(f"{where}: an integer of {len(str(value))} digits is no number")
        return float(value)
    if wanted in (bool, int, float, str) and type(value) is not wanted:
        raise ValueError(f"{where}: expected {wanted.__name__}, found {type(value).__name__}")
    return value
