"""What every command shares: where output goes, what an error looks like, which exit code it gets.

Exit codes: 0 good · 1 a check did not hold, or the numerics gave up · 2 the user's mistake · 130 Ctrl-C.
With MPCORE_TRACEBACK=1 errors keep their traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from mpcore.folder import RUN
from mpcore.records import atomic, to_plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

CHECK_FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130

_EXTRAS = {
    "torch": "torch", "torchvision": "torch", "timm": "torch", "PIL": "torch", "jinja2": "report",
    "matplotlib": "report", "sklearn": "demo", "scipy": "demo", "ray": "scale", "accelerate": "scale",
    "onnx": "onnx", "onnxruntime": "onnx", "transformers": "hf",
}  # fmt: skip


class Session:
    """Output of one command: a JSON document or tables on stdout, notes and progress on stderr."""

    interruption_said = False  # in this process
    folder: Path | None = None  # the run folder of the command at work, where the same command takes it up again

    def __init__(self, stdout: TextIO, *, as_json: bool, quiet: bool, out: Path | None) -> None:
        self._stdout, self._as_json, self._quiet, self._out = stdout, as_json, quiet, out

    @property
    def progress(self) -> bool:
        """Whether long work may show progress on stderr."""
        return not self._quiet

    def note(self, text: str) -> None:
        """One line on stderr, unless the user asked for quiet."""
        if not self._quiet:
            print(text, file=sys.stderr)

    def emit(self, document: dict[str, Any], *view: RenderableType) -> None:
        """Print the result: ``document`` as JSON if asked for, else ``view``; into the --out file as well."""
        text = json.dumps(to_plain(document), indent=1, allow_nan=False)
        if self._out is not None:
            with atomic(self._out) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        if self._as_json:
            print(text, file=self._stdout, flush=True)
            return
        console = _console(self._stdout)
        for part in view:
            console.print(part)

    @classmethod
    def resumable(cls) -> bool:
        """Whether there is something that the same command would take up."""
        folder = cls.folder
        return folder is not None and ((folder / RUN).is_file() or any(folder.glob("training-*.partial")))

    def fail(self) -> typer.Exit:
        """The exception that ends a command whose check did not hold."""
        return typer.Exit(CHECK_FAILED)


@contextmanager
def session(
    *, json: bool, quiet: bool = False, out: Path | None = None, resumes: Path | None = None
) -> Iterator[Session]:
    """Run a command's body: errors become one line on stderr and an exit code.

    Args:
        json: print one JSON document; whatever libraries print to stdout meanwhile goes to stderr.
        quiet: no notes, no progress.
        out: file that gets the JSON document too.
        resumes: the run folder in which the same command takes up an interrupted run; said on Ctrl-C once it exists.
    """
    stdout = sys.stdout
    Session.folder = resumes
    try:
        with ExitStack() as stack:
            if json:
                stack.enter_context(redirect_stdout(sys.stderr))
            yield Session(stdout, as_json=json, quiet=quiet, out=out)
    except KeyboardInterrupt:
        Session.interruption_said = True
        hint = "; the same command resumes the run" if Session.resumable() else ""
        raise _exit(f"interrupted{hint}", INTERRUPTED) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except (
        RuntimeError,
        ValueError,
        TypeError,
        ArithmeticError,
        LookupError,
        OSError,
        ImportError,
        MemoryError,
    ) as error:
        if os.environ.get("MPCORE_TRACEBACK"):
            raise
        # ConvergenceError and torch's own complaints are RuntimeErrors: not the user's mistake, and no defect to hide.
        raise _exit(_one_line(error), CHECK_FAILED if isinstance(error, RuntimeError) else USER_ERROR) from None


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # A pipe has no width; tables must not be cut to the 80 columns rich would assume.
    return Console(file=stream, width=None if stream.isatty() else 160, highlight=False, soft_wrap=False)


def _exit(message: str, code: int) -> typer.Exit:
    print(f"mpcore: {message}", file=sys.stderr)
    return typer.Exit(code)


def _one_line(error: BaseException) -> str:
    """The error's message on one line, with what to do where that is known."""
    if isinstance(error, ImportError):
        return _missing_module(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror.lower()}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def _missing_module(error: ImportError) -> str:
    module = (error.name or "").split(".")[0]
    if module in _EXTRAS:
        return f"this needs {module}: pip install 'mpcore[{_EXTRAS[module]}]'"
    return f"{error}"
