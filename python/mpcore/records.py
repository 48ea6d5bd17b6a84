"""The records that cross stages: frozen dataclasses, one JSON file each in the run folder, with a format version.

Every record is plain data (numbers, strings, tuples, other records), so that a reader with nothing but the standard
library can open a run folder. ``docs/formats.md`` describes each file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mpcore.arrays import to_numpy as to_numpy
from mpcore.pattern import Pattern as Pattern
from mpcore.serialise import FORMAT as FORMAT
from mpcore.serialise import Record as Record
from mpcore.serialise import atomic as atomic
from mpcore.serialise import from_plain as from_plain
from mpcore.serialise import to_plain as to_plain
from mpcore.serialise import to_rows as to_rows


class ConvergenceError(RuntimeError):
    """A numerical routine did not reach its tolerance; the message names the routine and where it stood."""

    __module__ = "mpcore"


@dataclass(frozen=True)
class LayerInfo:
    """One Linear or Conv2d of a model.

    ``shape`` is (out, in) or (out, in/groups, kh, kw): the weight's own but for a transposed Conv1D. ``reason`` says in
    words why a layer is left alone and is empty where ``prunable``. ``permutable``: the template of a family says that
    its input channels can be reordered for free; what a trace of the network proves besides stands in the plan.
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
class LayerInventory(Record, Mapping[str, LayerInfo]):
    """Every Linear and Conv2d of a model by name, in the order of ``model.named_modules()``."""

    kind: ClassVar[str] = "inventory"
    layers: tuple[LayerInfo, ...]
    parameters: int  # of the whole model

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.layers)

    def leaving(self, reasons: Mapping[str, str]) -> LayerInventory:
        """The same, but that layers named in ``reasons`` are left alone, and why."""
        layers = (
            dataclasses.replace(layer, prunable=False, permutable=False, reason=reasons[layer.name])
            if layer.prunable and layer.name in reasons
            else layer
            for layer in self.layers
        )
        return dataclasses.replace(self, layers=tuple(layers))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerInfo:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; the model has {', '.join(v.name for v in self.layers[:5])}, ...")

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per layer, for ``pandas.DataFrame``."""
        return to_rows(self.layers)

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
    method: str  # "uniform" | "seb" | "rmt-2025" | "knapsack" | "table"
    layers: tuple[LayerBudget, ...]
    density: float

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per layer, for ``pandas.DataFrame``."""
        return to_rows(self.layers)


@dataclass(frozen=True)
class PermutedGroup:
    """One reordering of channels: ``order[new] = old``, folded into ``producers`` and ``consumers``.

    ``gathered``: nothing could take it but the consumers, which read their inputs through it at run time. ``starts``:
    where the channels begin in the inputs of each consumer; empty if they are all its inputs.
    """

    consumers: tuple[str, ...]
    producers: tuple[str, ...]
    order: tuple[int, ...]
    kept: float  # score kept with this order
    kept_identity: float  # with the given order
    row_bound: float  # no order can keep more
    upper_bound: float
    efficacy: float
    output_change: float  # by all orders: largest |output after - output before| / largest |output|, in float64
    gathered: bool = False
    starts: tuple[int, ...] = ()


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

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per pruned layer, for ``pandas.DataFrame``."""
        return to_rows(self.layers)


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
    label_margin: tuple[float, ...] | None = None  # of the dense model: logit of the true label minus the largest other

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per layer, its largest and mean effect, for ``pandas.DataFrame``."""
        return to_rows(self.layers)


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
    """speed.json: every figure names its baseline; without a measurement the field is None and ``reason`` says so.

    ``notes`` names what is faster than the sparse layers and needs no sparsity.
    """

    kind: ClassVar[str] = "speed"
    machine: str
    threads: int
    baseline: str
    layers: tuple[SpeedRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest(Record):
    """manifest.json, written last: a run folder without it is unfinished.

    ``seal`` is the SHA-256 of the rest, set by :meth:`write` and compared by :meth:`read`.
    """

    kind: ClassVar[str] = "manifest"
    version: str  # of mpcore
    seed: int
    recipe: dict[str, Any]
    source: dict[str, Any]  # how to build the model again, e.g. {"timm": name, "kwargs": {...}}; may be empty
    patterns: dict[str, Pattern]
    files: dict[str, str]  # file name -> sha256
    versions: dict[str, str] = field(default_factory=dict)  # of torch, numpy, ...
    seal: str = field(default="", compare=False)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path``, sealed."""
        Record.write(dataclasses.replace(self, seal=self._digest()), path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read what :meth:`write` wrote; a ValueError if a value in it has changed since."""
        manifest = super().read(path)
        if manifest.seal != manifest._digest():
            raise ValueError(f"{path}: has changed since it was written (its seal does not fit)")
        return manifest

    def _digest(self) -> str:
        plain = {**self.to_dict(), "seal": ""}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


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
