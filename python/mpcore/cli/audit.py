"""``mpcore audit``: what 2:4 sparsity gains on this GPU, measured against the best dense baseline."""

from __future__ import annotations

from mpcore.cli.options import Json, OutFile, Quiet, Seed
from mpcore.cli.session import session


def audit(json: Json = False, out: OutFile = None, quiet: Quiet = False, seed: Seed = 0) -> None:
    """Measure what 2:4 sparsity gains on this GPU; says "not measured" where there is none."""
    with session(json=json, quiet=quiet, out=out) as console:
        from mpcore.cli.view import table
        from mpcore.gpu.audit import audit as measure
        from mpcore.report.text import number

        report = measure(seed=seed, progress=console.progress)
        columns = ("layer", "backend", "dense s", "sparse s", "gain", "reason")
        rows = [
            (row.layer, row.backend, number(row.dense_s), number(row.sparse_s), number(row.gain), row.reason)
            for row in report.layers
        ]
        title = f"{report.machine}, {report.threads} threads; baseline: {report.baseline}"
        console.emit(report.to_dict(), table(columns, rows, title=title))
