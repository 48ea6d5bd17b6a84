"""Records to HTML: the rows and charts that page.html.j2 lays out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mpcore.records import EvalReport, PermutedGroup, PlannedLayer
from mpcore.report import text
from mpcore.report.charts import accuracy_chart, bar, margin_chart, training_chart
from mpcore.report.records import RunRecords
from mpcore.report.spectrum import spectrum_chart


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    title: str
    figure: str
    detail: str


def page(run: RunRecords) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("mpcore.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (resources.files("mpcore.report") / "style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(_context(run), style=Markup(style), text=text)


def _context(run: RunRecords) -> dict[str, Any]:
    rows = run.evaluation.rows if run.evaluation is not None else ()
    return {
        "run": run,
        "title": _title(run),
        "cards": _cards(run),
        "accuracy": accuracy_chart(rows),
        "rows": rows,
        "margins": margin_chart(run.certificate) if run.certificate is not None else "",
        "layers": [_layer(run, layer) for layer in run.plan.layers],
        "groups": [_group(group) for group in run.plan.groups],
        "left_alone": _left_alone(run),
        "spectra": _spectra(run),
        "training": training_chart(run.training),
    }


def _title(run: RunRecords) -> str:
    """What was pruned, in the manifest's words."""
    source = run.manifest.source
    for key in ("name", "timm", "torchvision", "function"):
        if isinstance(source.get(key), str):
            return str(source[key])
    return "A pruned network"


def _cards(run: RunRecords) -> list[Card]:
    cards = [_density_card(run)]
    accuracy = {row.model: row for row in (run.evaluation.rows if run.evaluation is not None else ())}
    if (card := _accuracy_card(accuracy)) is not None:
        cards.append(card)
    if run.certificate is not None and run.certificate.samples:
        certificate = run.certificate
        detail = f"{certificate.stable} of {certificate.samples} samples; {certificate.unchanged} did not change"
        share = text.percent(certificate.stable / certificate.samples, 1)
        cards.append(Card(f"Labels certified, {run.certified}", share, detail))
    if run.plan.layers:
        worst = max(run.plan.layers, key=lambda layer: layer.relative_error)
        cards.append(Card("Worst squared output error, pruned", text.percent(worst.relative_error, 1), worst.name))
    return cards


def _density_card(run: RunRecords) -> Card:
    pruned = [layer.name for layer in run.plan.layers]
    sizes = {layer.name: layer.parameters for layer in run.inventory.layers}
    total, kept = sum(sizes.get(name, 0) for name in pruned), sum(layer.kept for layer in run.plan.layers)
    whole = run.inventory.parameters
    left = text.percent((whole - total + kept) / whole, 1) if whole else text.DASH
    detail = f"of {text.count(total)} weights in {len(pruned)} layers; {left} of the whole network"
    return Card("Weights kept", text.percent(kept / total, 1) if total else text.DASH, detail)


def _accuracy_card(accuracy: dict[str, EvalReport]) -> Card | None:
    final = accuracy.get("distilled") or accuracy.get("pruned")
    dense = accuracy.get("dense")
    if final is None:
        return None
    if final.top1 is None:
        title = f"Agreement, {final.model}"
        return Card(
            title, text.percent(final.agreement), f"with the dense network; 95 %: {text.interval(final.agreement_ci)}"
        )
    detail = f"95 %: {text.interval(final.top1_ci)}"
    if dense is not None and dense.top1 is not None:
        detail = f"dense {text.percent(dense.top1)}; {detail}"
    return Card(f"Top-1, {final.model}", text.percent(final.top1), detail)


def _layer(run: RunRecords, layer: PlannedLayer) -> dict[str, Any]:
    worst = max((entry.mask_only_error for entry in run.plan.layers), default=0.0) or 1.0
    steps = {entry.name: entry for entry in run.steps.layers} if run.steps is not None else {}
    step = steps.get(layer.name)
    return {
        "plan": layer,
        "fit": run.spectra.get(layer.name),
        "bar": bar(layer.relative_error / worst),
        "mask_bar": bar(layer.mask_only_error / worst, "fill faint"),
        "eta_mean": None if step is None else step.eta_mean,
        "eta_max": None if step is None else step.eta_max,
    }


def _group(group: PermutedGroup) -> dict[str, Any]:
    gain = group.kept / group.kept_identity - 1 if group.kept_identity else None
    gap = group.upper_bound / group.kept - 1 if group.kept else None
    return {"group": group, "gain": gain, "gap": gap, "bar": bar(group.efficacy)}


def _left_alone(run: RunRecords) -> list[tuple[str, str, str]]:
    """Layers that stay dense: name, shape and why."""
    planned = {layer.name for layer in run.plan.layers}
    budgeted = {layer.name: layer.reason for layer in run.budget.layers}
    return [
        (layer.name, text.shape(layer.shape), layer.reason or budgeted.get(layer.name, ""))
        for layer in run.inventory.layers
        if layer.name not in planned
    ]


def _spectra(run: RunRecords) -> list[dict[str, Any]]:
    charts = ((name, fit, spectrum_chart(name, fit)) for name, fit in run.spectra.items())
    return [{"name": name, "fit": fit, "chart": chart} for name, fit, chart in charts if chart]
