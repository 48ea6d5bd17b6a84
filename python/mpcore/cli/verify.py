"""``mpcore verify``: re-check a finished run from its files alone."""

from __future__ import annotations

from mpcore.cli.options import Json, NoSeed, OutFile, Quiet, RunFolder
from mpcore.cli.session import session
from mpcore.folder import MANIFEST, unfinished


def verify(run: RunFolder, json: Json = False, out: OutFile = None, quiet: Quiet = False, seed: NoSeed = 0) -> None:
    """Re-check a finished run from its files alone: hashes, masks, zeros, certificate, intervals.

    Exits with 1 if anything does not hold, and names the layer and the N:M group where it can.
    """
    with session(json=json, quiet=quiet, out=out) as console:
        from mpcore.cli.view import counts, table
        from mpcore.verify import verify as check

        report = check(run)
        document = {name: value for name, value in report.to_dict().items() if name in ("ok", "problems", "checked")}
        rows = [(p.layer, "" if p.group is None else str(p.group), p.what) for p in report.problems]
        if not (run / MANIFEST).is_file():
            console.emit(document, unfinished(run))
            raise console.fail()
        problems = "1 problem" if len(rows) == 1 else f"{len(rows)} problems"
        view = [] if report.ok else [table(("layer", "group", "what"), rows)]
        verdict = "everything holds" if report.ok else problems
        console.emit(document, *view, f"{run}: {verdict} ({counts(report.checked)})")
        if not report.ok:
            raise console.fail()
