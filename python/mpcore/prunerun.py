"""What :func:`mpcore.prune` returns: the pruned model, its folder and the records of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mpcore.folder import RunFolder
from mpcore.html import facts, one_line
from mpcore.records import Budget, Certificate, EvalTable, LayerInventory, MaskPlan
from mpcore.spectra import SpectraReport


@dataclass(frozen=True)
class PruneReport:
    """The records of a run, as they stand in its folder."""

    inventory: LayerInventory
    spectra: SpectraReport
    budget: Budget
    plan: MaskPlan
    certificate: Certificate
    evaluation: EvalTable | None


@dataclass(frozen=True)
class PruneRun:
    """A pruned model, the folder its records are in, and the records."""

    model: nn.Module
    folder: Path
    report: PruneReport
    _keep: RunFolder | None = None  # a temporary folder lives as long as the run

    def __repr__(self) -> str:
        return one_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: what was done to every layer, what is certified, and the evaluation."""
        certificate, plan, evaluation = self.report.certificate, self.report.plan, self.report.evaluation
        certified = f"{certificate.stable} of {certificate.samples} labels cannot have changed"
        told = {"folder": str(self.folder), "certified": f"{certified}, {certificate.unchanged} did not"}
        shown = "" if evaluation is None else evaluation._repr_html_()
        return facts(told, title="PruneRun") + plan._repr_html_() + shown
