"""The records that cross stages: frozen dataclasses, one JSON file each in the run folder, with a format version.

Every record is plain data (numbers, strings, tuples, other records), so that a reader with nothing but the standard
library can open a run folder. ``docs/formats.md`` describes each file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

FORMAT = 1
"""Version of every file of a run folder; a reader refuses a newer one."""

AnyRecord = TypeVar("AnyRecord", bound="Record")


class ConvergenceError(RuntimeError):
    """A numerical routine did not reach its tolerance; the message names the routine and where it stood."""

    __module__ = "mpcore"


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` and rename it to ``path`` once the block ends well.

    An error or Ctrl-C inside the block removes the temporary file, so ``path`` is either whole or as it was before.

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
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def to_numpy(value: Any, name: str, *, ndim: int | None = None, finite: bool = True) -> np.ndarray[Any, Any]:
    """A floating-point array from numpy, a torch CPU tensor, or anything with ``__array__`` or DLPack.

    bfloat16 (torch or ml_dtypes) becomes float32, exactly; float16, float32 and float64 stay. Nothing else is
    converted, and torch is not imported.

    Args:
        value: the array-like.
        name: how errors call it.
        ndim: number of dimensions wanted; None takes any.
        finite: refuse NaN and infinities.

    Raises:
        TypeError: if the elements are not floating point, or the tensor is not on the CPU.
        ValueError: for another number of dimensions, an empty array, NaN or infinity.
    """
    if type(value).__module__.startswith("torch"):
        tensor = value.detach()
        if tensor.device.type != "cpu":
            raise TypeError(f"{name}: the tensor is on {tensor.device}, wanted one on the CPU (call .cpu())")
        value = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    elif not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
        value = np.from_dlpack(value)
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name}: dtype {array.dtype} is not float16, bfloat16, float32 or float64")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name}: shape {array.shape} has {array.ndim} dimensions, wanted {ndim}")
    if array.size == 0:
        raise ValueError(f"{name}: shape {array.shape} is empty")
    if finite and not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: entry {where} is {array[where]}, only finite values are accepted")
    return array


@dataclass(frozen=True, init=False)
class Pattern:
    """N:M sparsity: of every ``group`` = M consecutive weights at most ``keep`` = N are not zero.

    Args:
        pattern: ``"2:4"``, ``(2, 4)`` or a Pattern; 1 <= N < M <= 32.

    Raises:
        ValueError: if ``pattern`` is none of these.

    Example:
        >>> Pattern("2:4").density
        0.5
        >>> str(Pattern((8, 16)))
        '8:16'
    """

    keep: int
    group: int

    def __init__(self, pattern: str | tuple[int, int] | Pattern) -> None:
        if isinstance(pattern, Pattern):
            keep, group = pattern.keep, pattern.group
        elif isinstance(pattern, str) and (found := re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", pattern)):
            keep, group = int(found[1]), int(found[2])
        elif isinstance(pattern, (tuple, list)) and len(pattern) == 2 and all(isinstance(v, int) for v in pattern):
            keep, group = pattern
        else:
            raise ValueError(f"pattern {pattern!r}: wanted N:M such as '2:4', with 1 <= N < M <= 32")
        if not 1 <= keep < group <= 32:
            raise ValueError(f"pattern {keep}:{group}: N:M needs 1 <= N < M <= 32")
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "group", group)

    @property
    def density(self) -> float:
        """Share of the weights that are kept, N/M."""
        return self.keep / self.group

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"


@dataclass(frozen=True)
class Record:
    """A frozen dataclass that reads and writes itself as versioned JSON."""

    kind: ClassVar[str] = "record"

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers; NaN and infinities become None."""
        return typing.cast(dict[str, Any], to_plain(self))

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
        except json.JSONDecodeError as error:
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


def to_plain(value: Any) -> Any:
    """Records, tuples and numpy values as plain JSON data; NaN and infinities become None."""
    if isinstance(value, Pattern):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return to_plain(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
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
    if wanted is float and value is None:  # to_dict writes NaN and infinities as None
        return float("nan")
    if wanted is float and type(value) is int:
        return float(value)
    if wanted in (bool, int, float, str) and type(value) is not wanted:
        raise ValueError(f"{where}: expected {wanted.__name__}, found {type(value).__name__}")
    return value


@dataclass(frozen=True)
class LayerInfo:
    """One Linear or Conv2d of a model.

    ``shape`` is the weight's own: (out, in) or (out, in/groups, kh, kw). ``reason`` says in words why a layer is left
    alone and is empty where ``prunable``. ``permutable`` means that its input channels can be reordered for free.
    """

    name: str
    kind: str  # "linear" | "conv2d"
    shape: tuple[int, ...]
    role: str  # "attention" | "mlp" | "head" | "stem" | "pointwise" | "conv" | "depthwise" | "grouped" | "linear"
    prunable: bool
    permutable: bool
    reason: str = ""
    groups: int = 1

    @property
    def columns(self) -> int:
        """Length of one row as it is pruned: in_features, or kh*kw*C of a convolution (C fastest)."""
        size = 1
        for length in self.shape[1:]:
            size *= length
        return size

    @property
    def parameters(self) -> int:
        """Number of weights, bias excluded."""
        return self.shape[0] * self.columns


@dataclass(frozen=True)
class LayerInventory(Record):
    """Every Linear and Conv2d of a model, in the order of ``model.named_modules()``."""

    kind: ClassVar[str] = "inventory"
    layers: tuple[LayerInfo, ...]
    parameters: int  # of the whole model

    def __getitem__(self, name: str) -> LayerInfo:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; the model has {', '.join(v.name for v in self.layers[:5])}, ...")

    def prunable(self) -> tuple[LayerInfo, ...]:
        """The layers that may be pruned."""
        return tuple(layer for layer in self.layers if layer.prunable)


@dataclass(frozen=True)
class LayerBudget:
    """What one layer has to give: its pattern (None: stays dense), the density that follows, and why."""

    name: str
    pattern: Pattern | None
    density: float
    reason: str


@dataclass(frozen=True)
class Budget(Record):
    """Pattern of every layer. ``density`` is the share of all budgeted weights that is kept."""

    kind: ClassVar[str] = "budget"
    method: str  # "uniform" | "seb" | "table"
    layers: tuple[LayerBudget, ...]
    density: float


@dataclass(frozen=True)
class PermutedGroup:
    """One reordering of channels: ``order[new] = old``, folded into ``producers`` and ``consumers``."""

    consumers: tuple[str, ...]
    producers: tuple[str, ...]
    order: tuple[int, ...]
    kept: float  # score kept with this order
    kept_identity: float  # with the given order
    row_bound: float  # no order can keep more
    upper_bound: float
    efficacy: float
    output_change: float  # largest |output after - output before| / largest |output|, in float64


@dataclass(frozen=True)
class PlannedLayer:
    """What was done to one layer. Errors are tr(D H D') / tr(W H W') on the calibration moments."""

    name: str
    pattern: Pattern
    shape: tuple[int, ...]
    kept: int  # weights that stay
    kept_score: float  # share of the summed score that stays
    relative_error: float  # of the layer's outputs, after compensation
    mask_only_error: float  # the same with the dense weights under the mask


@dataclass(frozen=True)
class MaskPlan(Record):
    """Permutations and masks; the masks themselves (true = kept) are in masks.safetensors, keyed by layer name."""

    kind: ClassVar[str] = "plan"
    score: str
    solver: str
    sequence: str
    groups: tuple[PermutedGroup, ...]
    layers: tuple[PlannedLayer, ...]
    refused: dict[str, str] = field(default_factory=dict)  # consumer -> why its channels were left in place


@dataclass(frozen=True)
class LayerCertificate:
    """Effect of one layer's removal, measured in the network with all earlier removals done.

    ``eta_max`` and ``eta_mean`` are over the samples: the largest logit change caused by this step.
    """

    name: str
    eta_max: float
    eta_mean: float


@dataclass(frozen=True)
class Certificate(Record):
    """Measured-logit certificate on a finite sample set T (docs/method.md, "Certificates").

    Per sample s: ``margin[s]`` = top logit minus runner-up of the dense model, ``eta[s]`` = largest logit change of the
    final model, ``eta_path[s]`` = sum of the per-layer changes. The label of s cannot have flipped if
    margin > 2 eta. ``stable`` counts these; ``stable_path`` uses eta_path. It speaks of the samples of T and of no
    others.
    """

    kind: ClassVar[str] = "certificate"
    samples: int
    data_sha256: str
    model_sha256: str
    seed: int
    margin: tuple[float, ...]
    eta: tuple[float, ...]
    eta_path: tuple[float, ...]
    stable: int
    stable_path: int
    unchanged: int  # labels that in fact did not change; never below `stable`
    ce_bound: float  # |change of the mean cross entropy| <= ce_bound = 2 mean(eta)
    ce_change: float | None  # measured, where labels are known
    accuracy_dense: float | None
    accuracy_pruned: float | None
    accuracy_interval: tuple[float, float] | None  # certified from margins of the true label
    layers: tuple[LayerCertificate, ...] = ()


@dataclass(frozen=True)
class EvalReport(Record):
    """Accuracy of one model on one labelled (or unlabelled) set; intervals are 95 % Wilson intervals.

    ``agreement`` and ``kl`` compare with the teacher (KL(teacher || model), nats per sample); None without one.
    """

    kind: ClassVar[str] = "eval"
    model: str
    n: int
    top1: float | None
    top1_ci: tuple[float, float] | None
    top5: float | None
    nll: float | None
    agreement: float | None
    agreement_ci: tuple[float, float] | None
    kl: float | None


@dataclass(frozen=True)
class EvalTable(Record):
    """eval.json: the models of a run, side by side on the same images."""

    kind: ClassVar[str] = "evaluation"
    rows: tuple[EvalReport, ...]
    data: str = ""  # what was evaluated, in words


@dataclass(frozen=True)
class SpeedRow:
    """One layer timed dense and sparse, or the reason why not."""

    layer: str
    eligible: bool
    backend: str
    dense_s: float | None
    sparse_s: float | None
    gain: float | None
    reason: str


@dataclass(frozen=True)
class SpeedReport(Record):
    """speed.json: every figure names its baseline; without a measurement the field is None and ``reason`` says so."""

    kind: ClassVar[str] = "speed"
    machine: str
    threads: int
    baseline: str
    layers: tuple[SpeedRow, ...]


@dataclass(frozen=True)
class Manifest(Record):
    """manifest.json, written last: a run folder without it is unfinished."""

    kind: ClassVar[str] = "manifest"
    version: str  # of mpcore
    seed: int
    recipe: dict[str, Any]
    source: dict[str, Any]  # how to build the model again, e.g. {"timm": name, "kwargs": {...}}; may be empty
    patterns: dict[str, Pattern]
    files: dict[str, str]  # file name -> sha256
    versions: dict[str, str] = field(default_factory=dict)  # of torch, numpy, ...


@dataclass(frozen=True)
class Problem:
    """One thing :func:`mpcore.verify` found. ``group`` counts N:M groups in the row-major matrix view, or is None."""

    layer: str
    group: int | None
    what: str


@dataclass(frozen=True)
class VerifyReport(Record):
    """Result of :func:`mpcore.verify`."""

    kind: ClassVar[str] = "verify"
    ok: bool
    problems: tuple[Problem, ...]
    checked: dict[str, int]
