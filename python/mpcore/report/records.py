"""Everything a run folder says about itself, read once."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mpcore.records import Budget, Certificate, EvalTable, LayerInventory, Manifest, MaskPlan, Record
from mpcore.spectra import EdgeFit, SpectraReport

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class RunRecords:
    """The records of one run; None or empty where the run made none."""

    manifest: Manifest
    inventory: LayerInventory
    budget: Budget
    plan: MaskPlan
    certificate: Certificate | None  # of the final model
    certified: str  # which one that is: "student" | "pruned"
    steps: Certificate | None  # of the pruned model, layer by layer
    evaluation: EvalTable | None
    spectra: dict[str, EdgeFit]
    training: tuple[tuple[int, float], ...]  # (step, loss)


def read_run(folder: str | os.PathLike[str]) -> RunRecords:
    """Read the records of a finished run.

    Raises:
        FileNotFoundError: if the folder is missing or holds no finished run.
        ValueError: if a record is corrupt; names the file.
    """
    root = Path(folder)
    for name in ("manifest.json", "inventory.json", "budget.json", "plan.json"):
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root}: no finished run ({name} is missing)")
    steps = _optional(Certificate, root / "certificate.json")
    student = _optional(Certificate, root / "certificate-student.json")
    return RunRecords(
        manifest=Manifest.read(root / "manifest.json"),
        inventory=LayerInventory.read(root / "inventory.json"),
        budget=Budget.read(root / "budget.json"),
        plan=MaskPlan.read(root / "plan.json"),
        certificate=student or steps,
        certified="student" if student is not None else "pruned",
        steps=steps,
        evaluation=_optional(EvalTable, root / "eval.json"),
        spectra=_spectra(root / "spectra.json"),
        training=_training(root / "train.jsonl"),
    )


def _optional(kind: type[AnyRecord], path: Path) -> AnyRecord | None:
    return kind.read(path) if path.is_file() else None


def _spectra(path: Path) -> dict[str, EdgeFit]:
    if not path.is_file():
        return {}
    try:
        return dict(SpectraReport.from_json(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _training(path: Path) -> tuple[tuple[int, float], ...]:
    if not path.is_file():
        return ()
    points = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            points.append((int(entry["step"]), float(entry["loss"])))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: line {place} holds no step and loss") from None
    return tuple(points)
