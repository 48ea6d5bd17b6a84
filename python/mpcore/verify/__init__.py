"""Re-check a finished run from its files alone.

Nothing here is shared with the code that made the run: masks are recounted, certificates and intervals recomputed, by
lines of their own, so that a mistake in a search cannot hide in the check. No torch is needed.
"""

from __future__ import annotations

import os
from pathlib import Path

from mpcore.records import Manifest, VerifyReport
from mpcore.verify.arithmetic import check_budget, check_certificate, check_evaluation, check_inventory, check_plan
from mpcore.verify.arrays import check_masks, check_tensors, check_weights
from mpcore.verify.audit import Audit
from mpcore.verify.checkpoint import check_checkpoint
from mpcore.verify.files import check_files, check_readable


def verify(folder: str | os.PathLike[str]) -> VerifyReport:
    """Check every claim a run folder makes that can be checked from its files.

    Hashes of all files; N:M groups of every mask; exact zeros and finite weights; orders are permutations; patterns
    agree between inventory, budget, plan and manifest; certificate, intervals and densities recomputed.

    Args:
        folder: what ``mpcore.prune(..., out=folder)``, ``mpcore.distill`` or ``mpcore.prune_checkpoint`` left. Of the
            last, files are read block by block: memory does not grow with them.

    Returns:
        ``ok`` is true if nothing was found. A missing, unfinished or corrupt file is a problem in the list, not an
        exception. ``checked`` counts what was looked at.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such run folder")
    audit = Audit(root)
    manifest = audit.record(
        Manifest, "manifest.json", missing="interrupted run: the same `mpcore prune` command finishes it"
    )
    if manifest is not None and "checkpoint" in manifest.source:
        check_checkpoint(audit, manifest)
    elif manifest is not None:
        check_files(audit, manifest)
        masks = check_masks(audit, manifest)
        for name in ("model.safetensors", "student.safetensors", "dense.safetensors"):
            check_weights(audit, name, masks if name != "dense.safetensors" else {})
        for name in ("model.safetensors", "student.safetensors"):
            check_tensors(audit, name)
        inventory = check_inventory(audit, manifest)
        check_budget(audit, manifest, inventory)
        counted = {name: (int(mask.sum()), mask.shape) for name, mask in masks.items()}
        check_plan(audit, manifest, counted, inventory)
        check_certificate(audit, manifest, "certificate.json", "model.safetensors", manifest.patterns)
        check_certificate(audit, manifest, "certificate-student.json", "student.safetensors")
        check_evaluation(audit)
        check_readable(audit)
    return VerifyReport(ok=not audit.problems, problems=tuple(audit.problems), checked=dict(audit.checked))
