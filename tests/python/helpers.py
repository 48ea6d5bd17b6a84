"""A small run folder made of records and NumPy alone, as honest as a real one, for tests to damage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mpcore.checkpoint import save_tensors, sha256
from mpcore.records import (
    Budget,
    Certificate,
    EvalReport,
    EvalTable,
    LayerBudget,
    LayerCertificate,
    LayerInfo,
    LayerInventory,
    Manifest,
    MaskPlan,
    Pattern,
    PermutedGroup,
    PlannedLayer,
)

LAYERS = {"blocks.0.mlp.fc1": (96, 48), "blocks.0.mlp.fc2": (48, 96), "stem.conv": (24, 16, 3, 3)}
PATTERNS = {"blocks.0.mlp.fc1": "2:4", "blocks.0.mlp.fc2": "2:4", "stem.conv": "8:16"}


def write_run(folder: Path, *, seed: int = 0, student: bool = True, spectra: bool = False) -> Path:
    """A finished run: the files of a run folder, each number derived from the others."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    dense = {name: _trained(rng, shape) for name, shape in LAYERS.items()}
    masks = {name: magnitude_mask(weight, Pattern(PATTERNS[name])) for name, weight in dense.items()}
    others = {"head.weight": _trained(rng, (10, 48)), "head.bias": np.zeros(10, np.float32)}
    save_tensors(folder / "dense.safetensors", _parameters(dense, others))
    pruned = {name: np.where(masks[name], weight, np.float32(0)) for name, weight in dense.items()}
    save_tensors(folder / "model.safetensors", _parameters(pruned, others))
    save_tensors(folder / "masks.safetensors", masks)
    if student:
        tuned = {
            name: np.where(masks[name], weight * np.float32(1.01), np.float32(0)) for name, weight in pruned.items()
        }
        save_tensors(folder / "student.safetensors", _parameters(tuned, others))
        _write_training(folder, rng)
    save_tensors(folder / "calibration.safetensors", {"blocks.0.mlp.fc1.mean": np.zeros(48)})
    _write_records(folder, rng, dense, masks, student=student)
    if spectra:
        _write_spectra(folder, dense)
    seal(folder)
    return folder


def seal(folder: Path, **changes: Any) -> None:
    """Write manifest.json anew over what lies in the folder."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"}
    fields: dict[str, Any] = {
        "version": "0.1.0",
        "seed": 0,
        "recipe": {"pattern": "2:4", "solver": "admm", "score": "activation"},
        "source": {"timm": "vit_tiny_patch16_224", "kwargs": {"num_classes": 10}},
        "patterns": {name: Pattern(text) for name, text in PATTERNS.items()},
        "files": files,
        "versions": {"numpy": np.__version__},
    }
    Manifest(**{**fields, **changes}).write(folder / "manifest.json")


def magnitude_mask(weight: np.ndarray[Any, Any], pattern: Pattern) -> np.ndarray[Any, Any]:
    """Keep the largest of every group along the input channels, by sorting."""
    moved = np.moveaxis(np.abs(weight), 1, -1)
    groups = moved.reshape(-1, pattern.group)
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, np.argsort(-groups, axis=1, kind="stable")[:, : pattern.keep], True, axis=1)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(moved.shape), -1, 1))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval by solving |p - k/n| = z sqrt(p (1 - p) / n) for p."""
    z = 1.959963984540054
    roots = np.roots([1 + z * z / n, -(2 * successes / n + z * z / n), (successes / n) ** 2])
    low, high = sorted(float(root.real) for root in roots)
    return max(low, 0.0), min(high, 1.0)


def _trained(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Noise plus two spikes well above the Marchenko-Pastur edge."""
    rows, columns = shape[0], math.prod(shape[1:])
    noise = rng.normal(size=(rows, columns)) * 0.05
    signal = rng.normal(size=(rows, 2)) @ np.diag([0.10, 0.06]) @ rng.normal(size=(2, columns))
    return (noise + signal).astype(np.float32).reshape(shape)


def _parameters(layers: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {**{f"{name}.weight": weight for name, weight in layers.items()}, **others}


def _write_training(folder: Path, rng: np.random.Generator) -> None:
    loss = 0.6 + 1.4 * np.exp(-np.arange(60) / 12) + rng.normal(size=60) * 0.04
    lines = [
        json.dumps(
            {"step": 2 * n + 2, "epoch": 1 + n // 20, "loss": round(float(value), 5), "lr": 1e-3, "seconds": 0.5 * n}
        )
        for n, value in enumerate(loss)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_records(
    folder: Path, rng: np.random.Generator, dense: dict[str, Any], masks: dict[str, Any], *, student: bool
) -> None:
    infos = [LayerInfo(name, "conv2d" if len(s) == 4 else "linear", s, "mlp", True, True) for name, s in LAYERS.items()]
    head = LayerInfo("head", "linear", (10, 48), "head", False, False, "classifier head")
    LayerInventory((*infos, head), sum(w.size for w in dense.values()) + 490).write(folder / "inventory.json")
    budgets = tuple(LayerBudget(name, Pattern(p), Pattern(p).density, "uniform") for name, p in PATTERNS.items())
    Budget("uniform", budgets, 0.5).write(folder / "budget.json")
    layers = tuple(_planned(name, dense[name], masks[name]) for name in LAYERS)
    order = tuple(int(i) for i in rng.permutation(96))
    group = PermutedGroup(("blocks.0.mlp.fc2",), ("blocks.0.mlp.fc1",), order, 82.5, 80.0, 85.0, 84.0, 0.5, 2e-15)
    MaskPlan("activation", "admm", "asymmetric", (group,), layers).write(folder / "plan.json")
    _certificate(rng, sha256(folder / "model.safetensors")).write(folder / "certificate.json")
    if student:
        _certificate(rng, sha256(folder / "student.safetensors")).write(folder / "certificate-student.json")
    counts = {"dense": 338, "pruned": 322, "distilled": 335, "dense-continued": 339}
    rows = tuple(_evaluated(name, k, 360) for name, k in counts.items() if student or name in ("dense", "pruned"))
    EvalTable(rows, "360 held-out images").write(folder / "eval.json")


def _planned(name: str, weight: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> PlannedLayer:
    share = float(np.abs(weight[mask]).sum() / np.abs(weight).sum())
    kept = int(mask.sum())
    return PlannedLayer(name, Pattern(PATTERNS[name]), weight.shape, kept, share, 0.031, 0.094)


def _certificate(rng: np.random.Generator, model: str) -> Certificate:
    margin = rng.gamma(2.0, 2.0, size=64)
    steps = {name: rng.gamma(2.0, 0.1, size=64) for name in LAYERS}
    path = sum(steps.values())
    eta = path * rng.uniform(0.4, 0.9, size=64)
    stable, stable_path = int((margin > 2 * eta).sum()), int((margin > 2 * path).sum())
    layers = tuple(LayerCertificate(name, float(s.max()), float(s.mean())) for name, s in steps.items())
    lead = np.where(np.arange(64) < 60, margin, -margin - 0.1)
    interval = float((lead > 2 * eta).mean()), float((lead >= -2 * eta).mean())
    return Certificate(
        samples=64, data_sha256="ab" * 32, model_sha256=model, seed=0,
        margin=tuple(margin.tolist()), eta=tuple(eta.tolist()), eta_path=tuple(path.tolist()),
        stable=stable, stable_path=stable_path, unchanged=min(stable + 2, 64), ce_bound=2 * float(eta.mean()),
        ce_change=0.01, accuracy_dense=60 / 64, accuracy_pruned=58 / 64, accuracy_interval=interval,
        layers=layers, label_margin=tuple(lead.tolist()),
    )  # fmt: skip


def _evaluated(model: str, correct: int, n: int) -> EvalReport:
    teacher = model == "dense"
    agreed = n if teacher else correct
    return EvalReport(
        model=model, n=n, top1=correct / n, top1_ci=wilson(correct, n), top5=(n - 1) / n, nll=1.1 - correct / n,
        agreement=agreed / n, agreement_ci=wilson(agreed, n), kl=0.0 if teacher else 0.04,
    )  # fmt: skip


def _write_spectra(folder: Path, dense: dict[str, Any]) -> None:
    from mpcore.spectra import fit_edges

    matrices = {name: weight.reshape(weight.shape[0], -1) for name, weight in dense.items()}
    (folder / "spectra.json").write_text(fit_edges(matrices, return_values=True).to_json(), encoding="utf-8")
