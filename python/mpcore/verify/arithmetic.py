"""The numbers in the records follow from one another: patterns, densities, orders, certificate, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mpcore.records import (
    Budget,
    Certificate,
    EvalReport,
    EvalTable,
    LayerInfo,
    LayerInventory,
    Manifest,
    MaskPlan,
    PermutedGroup,
)
from mpcore.verify.audit import Audit

Layers = dict[str, LayerInfo] | None
"""The layers of inventory.json by name; None if it cannot be read."""

_MOST = 2**53
"""No count in a record is larger: float64 has every one up to here."""
_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def check_inventory(audit: Audit, manifest: Manifest) -> Layers:
    """Sizes of layers are sizes, the pruned ones are prunable, and the model is no smaller than they are together."""
    inventory = audit.record(LayerInventory, "inventory.json", missing="without it densities cannot be recomputed")
    if inventory is None:
        return None
    for layer in inventory.layers:
        sizes = len(layer.shape) > 1 and all(0 <= length <= _MOST for length in layer.shape)
        if not sizes or layer.parameters > _MOST:
            audit.add(f"inventory.json: shape {layer.shape} is that of no weight", layer=layer.name)
            return None
    layers = {layer.name: layer for layer in inventory.layers}
    audit.expect(len(layers) == len(inventory.layers), "inventory.json: a layer is listed twice")
    for name in manifest.patterns:
        audit.expect(
            name in layers and layers[name].prunable, "is pruned, and not prunable by inventory.json", layer=name
        )
    least = sum(layer.parameters for layer in inventory.prunable())
    whole = inventory.parameters
    audit.expect(least <= whole, f"inventory.json: the model has {whole} parameters, its prunable layers {least}")
    return layers


def check_budget(audit: Audit, manifest: Manifest, layers: Layers) -> None:
    """Budgeted patterns are the manifest's; densities follow from patterns and layer sizes."""
    budget = audit.record(Budget, "budget.json", missing="without it the patterns cannot be compared")
    if budget is None:
        return
    patterns = {layer.name: layer.pattern for layer in budget.layers if layer.pattern is not None}
    for name in sorted(set(patterns) | set(manifest.patterns)):
        found, wanted = patterns.get(name), manifest.patterns.get(name)
        audit.expect(found == wanted, f"budget.json says {found or 'dense'}, manifest.json {wanted}", layer=name)
    for layer in budget.layers:
        density = 1.0 if layer.pattern is None else layer.pattern.density
        audit.expect(_close(layer.density, density), f"budget.json: density is not {density:g}", layer=layer.name)
    if layers is None:
        return
    sizes = {name: layer.parameters for name, layer in layers.items()}
    unknown = [layer.name for layer in budget.layers if layer.name not in sizes]
    for name in unknown:
        audit.add("budget.json names a layer that inventory.json does not have", layer=name)
    total = sum(sizes[layer.name] for layer in budget.layers if layer.name in sizes)
    if total and not unknown:
        density = sum(sizes[layer.name] * layer.density for layer in budget.layers) / total
        audit.expect(_close(budget.density, density), f"budget.json: density {budget.density:g} is not {density:g}")


def check_plan(
    audit: Audit, manifest: Manifest, counted: Mapping[str, tuple[int, tuple[int, ...]]], layers: Layers
) -> None:
    """Planned layers are the manifest's, count what their masks keep, and every order is a permutation.

    ``counted``: layer -> weights its mask keeps, and the mask's shape.
    """
    plan = audit.record(MaskPlan, "plan.json", missing="without it the masks cannot be compared")
    if plan is None:
        return
    planned = {layer.name: layer for layer in plan.layers}
    audit.expect(len(planned) == len(plan.layers), "plan.json: a layer is listed twice")
    for name in sorted(set(planned) ^ set(manifest.patterns)):
        audit.add("is in only one of plan.json and manifest.json", layer=name)
    for name, layer in planned.items():
        wanted = manifest.patterns.get(name, layer.pattern)
        audit.expect(
            layer.pattern == wanted, f"plan.json says {layer.pattern}, manifest.json says {wanted}", layer=name
        )
        audit.expect(
            _within(layer.kept_score, 0, 1), f"plan.json: kept_score {layer.kept_score} is no share", layer=name
        )
        for error in (layer.relative_error, layer.mask_only_error):
            audit.expect(0 <= error < math.inf, f"plan.json: an output error is {error}", layer=name)
        if name in counted:
            kept, shape = counted[name]
            audit.expect(layer.kept == kept, f"plan.json says {layer.kept} weights stay, the mask {kept}", layer=name)
            same = tuple(layer.shape) == shape
            audit.expect(same, f"plan.json says shape {layer.shape}, the mask has {shape}", layer=name)
    for group in plan.groups:
        _check_order(audit, group, layers)


def _check_order(audit: Audit, group: PermutedGroup, layers: Layers) -> None:
    name = ", ".join(dict.fromkeys(group.consumers))
    audit.checked["orders"] += 1
    audit.expect(sorted(group.order) == list(range(len(group.order))), "order is not a permutation", layer=name)
    known = layers or {}
    size, starts = len(group.order), group.starts or (0,) * len(group.consumers)
    audit.expect(len(starts) == len(group.consumers), f"{len(starts)} starts for its consumers", layer=name)
    for consumer, start in zip(group.consumers, starts, strict=False) if layers is not None else ():
        takes = known[consumer].shape[1] * known[consumer].groups if consumer in known else 0
        fits = 0 <= start <= takes - size if group.starts else takes % max(size, 1) == 0
        where = f" from {start} on" if start else ""
        told = f"an order of {size} channels{where} for a layer that takes {takes}"
        audit.expect(bool(takes and size) and fits, told, layer=consumer)
    audit.expect(0 <= group.output_change < 1, f"output_change is {group.output_change}", layer=name)
    kept = {"kept": group.kept, "kept_identity": group.kept_identity}
    for what, value in kept.items():
        most = group.upper_bound
        audit.expect(value <= most * (1 + 1e-9), f"{what} {value} is above upper_bound {most}", layer=name)
    bounds = group.upper_bound <= group.row_bound * (1 + 1e-9)
    audit.expect(bounds, f"upper_bound {group.upper_bound} is above row_bound {group.row_bound}", layer=name)
    room = group.row_bound - group.kept_identity
    if room > 1e-9 * abs(group.row_bound):
        efficacy = (group.kept - group.kept_identity) / room
        audit.expect(_close(group.efficacy, efficacy), f"efficacy {group.efficacy} is not {efficacy}", layer=name)


def check_certificate(audit: Audit, manifest: Manifest, file: str, model: str, wanted: Iterable[str] = ()) -> None:
    """Recount stable labels and recompute the cross-entropy bound from the margins and logit changes in ``file``.

    The certificate must be about the weights in ``model``, and tell how far each layer of ``wanted`` moved the logits.
    """
    certificate = audit.record(Certificate, file)
    if certificate is None:
        return
    audit.checked["samples"] += certificate.samples
    _check_samples(audit, certificate, file)
    of = certificate.model_sha256[:16]
    audit.expect(certificate.model_sha256 == manifest.files.get(model), f"{file} is about another model ({of}...)")
    for name in sorted(set(wanted).difference(layer.name for layer in certificate.layers)):
        audit.add(f"{file} does not tell what it changed", layer=name)
    for layer in certificate.layers:
        audit.expect(0 <= layer.eta_mean <= layer.eta_max * (1 + 1e-9), "eta_mean is above eta_max", layer=layer.name)
    if certificate.layers and certificate.eta_path:
        steps, path = math.fsum(v.eta_mean for v in certificate.layers), math.fsum(certificate.eta_path)
        mean = path / len(certificate.eta_path)
        audit.expect(steps <= mean * (1 + 1e-9), f"{file}: the layers move logits by {steps}, eta_path says {mean}")


def _check_samples(audit: Audit, certificate: Certificate, file: str) -> None:
    margin, eta, path = (np.asarray(v) for v in (certificate.margin, certificate.eta, certificate.eta_path))
    lengths = {"margin": margin.size, "eta": eta.size, "eta_path": path.size}
    for name, length in lengths.items():
        audit.expect(length == certificate.samples, f"{file}: {length} of {certificate.samples} in {name}")
    if set(lengths.values()) != {certificate.samples} or certificate.samples == 0:
        return
    claims = {"stable": (certificate.stable, eta), "stable_path": (certificate.stable_path, path)}
    for name, (claimed, change) in claims.items():
        counted = int(np.count_nonzero(margin > 2 * change))
        audit.expect(claimed == counted, f"{file}: {name} is {claimed}, the margins give {counted}")
    audit.expect(bool((eta >= 0).all() and (margin >= 0).all()), f"{file}: a margin or change is negative")
    audit.expect(bool((path >= eta).all()), f"{file}: an eta_path is below its eta")
    audit.expect(
        certificate.stable <= certificate.unchanged <= certificate.samples,
        f"{file}: unchanged is {certificate.unchanged}, stable {certificate.stable} of {certificate.samples}",
    )
    bound = 2 * math.fsum(certificate.eta) / certificate.samples
    audit.expect(_close(certificate.ce_bound, bound), f"{file}: ce_bound {certificate.ce_bound} is not {bound}")
    if certificate.ce_change is not None:
        holds = abs(certificate.ce_change) <= bound * (1 + 1e-6) + 1e-9
        audit.expect(holds, f"{file}: ce_change {certificate.ce_change} is beyond ce_bound {bound}")
    if certificate.accuracy_interval is not None and certificate.accuracy_pruned is not None:
        low, high = certificate.accuracy_interval
        holds = low - 1e-9 <= certificate.accuracy_pruned <= high + 1e-9
        audit.expect(holds, f"{file}: accuracy {certificate.accuracy_pruned} is outside [{low}, {high}]")
    if certificate.accuracy_dense is not None and certificate.accuracy_pruned is not None:
        moved = abs(certificate.accuracy_pruned - certificate.accuracy_dense)
        changed = 1 - certificate.unchanged / certificate.samples
        audit.expect(moved <= changed + 1e-9, f"{file}: accuracy moves by {moved}, and {changed} of the labels did")
    of_labels = ("ce_change", "accuracy_dense", "accuracy_pruned", "accuracy_interval", "label_margin")
    unknown = [name for name in of_labels if getattr(certificate, name) is None]
    audit.expect(len(unknown) in (0, len(of_labels)), f"{file}: {', '.join(unknown)} unknown, though labels are known")
    if certificate.label_margin is not None:
        _check_labels(audit, certificate, np.asarray(certificate.label_margin), margin, eta, file)


def _check_labels(
    audit: Audit,
    certificate: Certificate,
    label_margin: np.ndarray[Any, Any],
    margin: np.ndarray[Any, Any],
    eta: np.ndarray[Any, Any],
    file: str,
) -> None:
    """Recompute what follows from the margins of the true label, which are those of the top label where it is right."""
    if label_margin.size != certificate.samples:
        audit.add(f"{file}: {label_margin.size} of {certificate.samples} in label_margin")
        return
    agree = np.where(label_margin > 0, label_margin == margin, -label_margin >= margin)
    audit.expect(bool(agree.all()), f"{file}: a label_margin does not fit its margin")
    low = np.count_nonzero(label_margin - 2 * eta > 0) / certificate.samples
    high = 1 - np.count_nonzero(label_margin + 2 * eta < 0) / certificate.samples
    claimed = certificate.accuracy_interval
    same = claimed is not None and _close(claimed[0], low) and _close(claimed[1], high)
    audit.expect(same, f"{file}: accuracy_interval is {claimed}, the margins give ({low:.6f}, {high:.6f})")
    if certificate.accuracy_dense is not None:  # a tie may go either way
        least, most = (label_margin > 0).mean() - 1e-9, (label_margin >= 0).mean() + 1e-9
        holds = bool(least <= certificate.accuracy_dense <= most)
        audit.expect(holds, f"{file}: accuracy_dense {certificate.accuracy_dense} is not that of the margins")


def check_evaluation(audit: Audit) -> None:
    """Shares are shares and their intervals are 95 % Wilson intervals."""
    table = audit.record(EvalTable, "eval.json")
    rows = () if table is None else table.rows
    audit.expect(len({row.model for row in rows}) == len(rows), "eval.json: a model is listed twice")
    for row in rows:
        _check_row(audit, row)


def _check_row(audit: Audit, row: EvalReport) -> None:
    where = f"eval.json, {row.model}"
    audit.expect(0 < row.n <= _MOST, f"{where}: n is {row.n}")
    if row.top1 is not None and row.top5 is not None:
        audit.expect(row.top1 <= row.top5, f"{where}: top1 {row.top1} is above top5 {row.top5}")
    for name, share, interval in (
        ("top1", row.top1, row.top1_ci),
        ("agreement", row.agreement, row.agreement_ci),
        ("top5", row.top5, None),
    ):
        if share is None or not 0 < row.n <= _MOST:
            continue
        counted = round(share * row.n) if _within(share, 0, 1) else -1
        audit.expect(_close(share, counted / row.n), f"{where}: {name} {share} is no share of {row.n} samples")
        if name != "top5" and interval is None:
            audit.add(f"{where}: {name} has no interval")
        if interval is not None:
            audit.checked["intervals"] += 1
            low, high = _wilson(counted, row.n)
            close = _close(interval[0], low) and _close(interval[1], high)
            audit.expect(close, f"{where}: interval of {name} is {interval}, Wilson's is ({low:.6f}, {high:.6f})")
    for name, value in (("nll", row.nll), ("kl", row.kl)):
        audit.expect(value is None or value >= -1e-6, f"{where}: {name} is {value}")


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval (Wilson, 1927): centre (k + z²/2)/(n + z²), half width z sqrt(k(n-k)/n + z²/4)/(n + z²)."""
    centre = (successes + _Z**2 / 2) / (n + _Z**2)
    half = _Z * math.sqrt(max(successes * (n - successes), 0) / n + _Z**2 / 4) / (n + _Z**2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _close(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= 1e-6 * max(1.0, abs(wanted))


def _within(value: float, low: float, high: float) -> bool:
    return low - 1e-9 <= value <= high + 1e-9
