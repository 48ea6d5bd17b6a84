"""``mpcore demo``: the main job on an embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpcore.cli.options import Json, Quiet, Seed
from mpcore.cli.session import session


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="The run folder to make, or to resume.")
    ] = Path("demo-run"),
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Train a small network on handwritten digits, prune it to 2:4, certify, distil, verify, report.

    About two minutes on two cores.
    """
    with session(json=json, quiet=quiet, resumes=out) as console:
        from mpcore.cli.view import table
        from mpcore.demo import run
        from mpcore.report.text import with_interval

        result = run(out, seed=seed, quiet=not console.progress)
        columns = ("model", "top-1 (95 %)", "n")
        rows = [(row["model"], with_interval(row["top1"], row["top1_ci"]), str(row["n"])) for row in result["rows"]]
        verdict = "verified" if result["verified"] else "NOT verified: run mpcore verify"
        console.emit(result, table(columns, rows, title="held-out digits"), f"{verdict} · report: {result['report']}")
        if not result["verified"]:
            raise console.fail()
