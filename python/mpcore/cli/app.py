"""The command line, put together."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mpcore._native import __version__
from mpcore.cli.audit import audit
from mpcore.cli.bench import bench
from mpcore.cli.demo import demo
from mpcore.cli.distill import distill
from mpcore.cli.doctor import doctor
from mpcore.cli.evaluate import evaluate
from mpcore.cli.inspect import inspect
from mpcore.cli.prune import prune
from mpcore.cli.report import report
from mpcore.cli.session import INTERRUPTED, Session
from mpcore.cli.verify import verify

_EPILOG = (
    "Try: mpcore demo --out demo-run · mpcore inspect model.safetensors · "
    "mpcore prune timm:vit_small_patch16_224 --calibration photos/ --out run · mpcore report run"
)

PANELS: dict[str, tuple[tuple[Callable[..., None], str], ...]] = {
    "Start here": ((demo, "mpcore demo --out demo-run"),),
    "Measure": (
        (inspect, "mpcore inspect model.safetensors · mpcore inspect timm:resnet18 --json"),
        (doctor, "mpcore doctor · mpcore doctor timm:vit_small_patch16_224 --weights random"),
    ),
    "Prune and recover": (
        (prune, "mpcore prune timm:vit_small_patch16_224 --calibration photos/ --pattern 2:4 --out run"),
        (distill, "mpcore distill run --train photos/ --epochs 3"),
        (evaluate, "mpcore evaluate run --data heldout/"),
    ),
    "Check and show": (
        (verify, "mpcore verify run"),
        (report, "mpcore report run"),
    ),
    "Speed": (
        (audit, "mpcore audit --json"),
        (bench, "mpcore bench"),
    ),
}
"""Panel of the help page -> commands with an example each."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mpcore {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Measure the noise in trained layers, prune it in N:M patterns, certify what changed, recover, run faster."""


def make_app() -> typer.Typer:
    """The typer application with every command in its panel."""
    settings: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
    made = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, context_settings=settings, epilog=_EPILOG)
    made.callback(epilog=_EPILOG)(_root)
    for panel, commands in PANELS.items():
        for function, example in commands:
            made.command(rich_help_panel=panel, epilog=f"Example: {example}")(function)
    return made


app = make_app()


def _interrupt(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def _leave(number: int, frame: object) -> None:
    hint = "; the same command resumes the run" if Session.resumable() else ""
    os.write(2, f"mpcore: left at once{hint}\n".encode())
    os._exit(INTERRUPTED)


def main() -> None:
    """Entry point of the ``mpcore`` command. The first Ctrl-C ends it in order, the second at once.

    Nothing is lost at the second: files appear under their names whole, and what is half-written is swept on resume.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell ignores it for its background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app(prog_name="mpcore")
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        if not Session.interruption_said:  # it came before or after the command's own work
            print("mpcore: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
