"""Every file the manifest names is there and has the bytes it had."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from mpcore.checkpoint import sha256
from mpcore.records import Manifest
from mpcore.verify.audit import Audit

REQUIRED = ("inventory.json", "budget.json", "plan.json", "masks.safetensors", "model.safetensors")
"""Without these nothing can be said about a run."""

OPTIONAL = (
    "spectra.json",
    "certificate.json",
    "certificate-student.json",
    "eval.json",
    "dense.safetensors",
    "student.safetensors",
    "train.jsonl",
)
"""Named in the manifest wherever they exist."""


def check_files(audit: Audit, manifest: Manifest, required: Iterable[str] = REQUIRED) -> None:
    """Recompute the SHA-256 of every file named, and miss none that should be."""
    for name, expected in sorted(manifest.files.items()):
        _check_file(audit, name, expected)
    for name in required:
        if name not in manifest.files:
            audit.add(f"manifest.json does not name {name}")
    for name in OPTIONAL:
        if name not in manifest.files and (audit.folder / name).exists():
            audit.add(f"{name} is in the folder, but manifest.json does not name it")


def check_readable(audit: Audit) -> None:
    """What no claim rests on can be read all the same: spectra, the log of the training, the statistics."""
    audit.weights("calibration.safetensors")
    for name, lines in (("spectra.json", False), ("train.jsonl", True)):
        path = audit.folder / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            for document in text.splitlines() if lines else [text]:
                json.loads(document)
        except (ValueError, RecursionError) as error:
            audit.add(f"{name} is not JSON ({error})")


def _check_file(audit: Audit, name: str, expected: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        audit.add(f"manifest.json names {name!r}, which is not a file inside the run folder")
        return
    path = audit.folder / name
    if not path.is_file():
        audit.add(f"{name} is missing, though manifest.json names it")
        return
    try:
        found = sha256(path)
    except OSError as error:
        audit.add(f"{name} cannot be read ({error.strerror})")
        return
    audit.checked["files"] += 1
    if found != expected:
        audit.add(f"{name} has changed: SHA-256 is {found[:16]}..., manifest.json says {expected[:16]}...")
