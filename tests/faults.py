"""What a run makes of kill -9, Ctrl-C twice, a full disk, a read-only folder, a twin, damaged files and a wrong clock.

    .venv/bin/python tests/faults.py [--kills 50] [--seed 0]

Run by ``make faults``. One run is three commands: ``prune`` a tiny network, ``distill`` it, ``prune`` a checkpoint of
three files. Each case must end in the very files of an undisturbed run, or in one line on stderr and an exit code;
and the same commands, given again once the fault is gone, must end in those files (damaged files excepted: they stay
refused). Prints a table; exit status 1 if a case does neither.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import mpcore.cli.app
import mpcore.models.data
import mpcore.models.source
import mpcore.pipeline
import mpcore.recovery
from mpcore.checkpoint import save_tensors
from mpcore.verify import verify

# Nothing is computed before the forks below: their children start threads of their own.

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
"""
RUNS = ("net", "stream")
TIMED = {"train.jsonl", "manifest.json"}  # hold seconds, or the hash of what holds them
Case = tuple[str, str]  # what was done, and "" or what is wrong with the end


class Bench:
    """Inputs, an undisturbed run, and the table so far."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.random = home, random.Random(seed)
        self.rows: list[tuple[str, Counter[str], list[str]]] = []
        write_inputs(home)
        start = time.monotonic()
        status, said = self.run(home / "right")
        self.seconds = time.monotonic() - start
        if status:
            raise RuntimeError(f"the undisturbed run fails: {said}")
        self.files = contents(home / "right")

    def run(self, root: Path, disturb: Callable[[int], None] = lambda child: None) -> tuple[int, str]:
        """Exit status and stderr of the three commands, in a child that ``disturb`` is told of."""
        root.mkdir(exist_ok=True)
        log = self.home / f"{root.name}.log"
        log.touch()
        child = os.fork()
        if child == 0:
            _child(self.home, root, log)
        disturb(child)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace").strip()

    def faults_of(self, root: Path) -> str:
        """Empty if ``root`` holds the files of the undisturbed run."""
        found = contents(root)
        different = sorted(name for name in {*found, *self.files} if found.get(name) != self.files.get(name))
        if different:
            return f"differs in {', '.join(different[:3])}"
        problems = [problem.what for name in RUNS for problem in verify(root / name).problems]
        return problems[0] if problems else ""

    def end(self, root: Path, status: int, said: str, *, killed: bool = False) -> str:
        """``"right"``, ``"error"`` (one line and a code, or killed by us), or what is wrong."""
        if status == 0:
            return self.faults_of(root) or "right"
        if killed and status == -signal.SIGKILL:
            return self.half_written(root) or "error"
        lines = said.splitlines()
        most = 2 if status == 130 else 1  # the second Ctrl-C has a line of its own
        clear = status in (1, 2, 130) and len(lines) <= most and said.startswith("mpcore: ")
        return self.half_written(root) or ("error" if clear else f"exit status {status}: {said[-300:]}")

    def half_written(self, root: Path) -> str:
        """A file under its final name is whole: a finished folder verifies, whenever it is looked at."""
        for name in RUNS:
            if (root / name / "manifest.json").exists():
                problems = [p.what for p in verify(root / name).problems if "does not name it" not in p.what]
                if problems:
                    return f"{name}: {problems[0]}"
        return ""

    def again(self, root: Path) -> str:
        """Empty if the same commands now end in the right files."""
        status, said = self.run(root)
        return self.faults_of(root) if status == 0 else f"again: exit status {status}: {said[-300:]}"

    def row(self, name: str, ends: Iterator[str]) -> None:
        """Count the ends of all cases of one fault."""
        counted: Counter[str] = Counter()
        wrong = []
        for end in ends:
            kind = end if end in ("right", "error") else "wrong"
            counted[kind] += 1
            if kind == "wrong":
                wrong.append(end)
                print(f"{name}: {end}", file=sys.stderr)
        self.rows.append((name, counted, wrong))
        print(
            f"| {name} | {counted.total()} | {counted['right']} | {counted['error']} | {counted['wrong']} |", flush=True
        )


def write_inputs(home: Path) -> None:
    rng = np.random.default_rng(0)
    (home / "net.py").write_text(NETWORK)
    np.savez(home / "data.npz", inputs=rng.standard_normal((96, 16), np.float32), targets=rng.integers(0, 4, 96))
    (home / "source").mkdir()
    places = []
    for k in range(3):
        layers = {f"layers.{k}.up.weight": rng.standard_normal((512, 256), np.float32)}
        save_tensors(home / "source" / f"model-{k}.safetensors", layers)
        places.append(f'"layers.{k}.up.weight": "model-{k}.safetensors"')
    (home / "source" / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{", ".join(places)}}}}}')


def commands(home: Path, root: Path) -> list[list[str]]:
    data, net, stream = str(home / "data.npz"), str(root / "net"), str(root / "stream")
    return [
        ["prune", f"{home / 'net.py'}:make", "-c", data, "-e", data, "--samples", "64", "-o", net, "-q", "--json"],
        ["distill", net, "--train", data, "--epochs", "3", "-q", "--json"],
        ["prune", str(home / "source"), "-o", stream, "-q", "--json"],
    ]


def _child(home: Path, root: Path, log: Path) -> None:
    """Run the commands and leave the process; never returns."""
    code = 70
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)
        for words in commands(home, root):
            sys.argv = ["mpcore", *words]
            try:
                mpcore.cli.app.main()
            except SystemExit as done:
                if done.code:
                    code = int(done.code)
                    break
        else:
            code = 0
    except KeyboardInterrupt:
        print("mpcore: interrupted between two commands", file=sys.stderr)
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def contents(root: Path) -> dict[str, bytes]:
    """What a finished run is compared by: every file but those that hold times, logs of the training and leftovers."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and "progress" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name not in TIMED}


def signalled(bench: Bench, root: Path, signals: list[tuple[float, int]]) -> str:
    """Send ``signals`` after so many seconds each, then give the commands again."""

    def disturb(child: int) -> None:
        for pause, number in signals:
            time.sleep(pause)
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                os.kill(child, number)

    status, said = bench.run(root, disturb)
    end = bench.end(root, status, said, killed=True)
    end = (bench.again(root) or end) if end in ("right", "error") else end
    shutil.rmtree(root)
    return end


def kills(bench: Bench, count: int) -> Iterator[str]:
    for k in range(count):
        yield signalled(bench, bench.home / f"kill{k}", [(bench.random.uniform(0, bench.seconds), signal.SIGKILL)])


def interrupts(bench: Bench, count: int) -> Iterator[str]:
    for k in range(count):
        first, second = bench.random.uniform(0, bench.seconds), bench.random.uniform(0.0, 0.05)
        yield signalled(bench, bench.home / f"int{k}", [(first, signal.SIGINT), (second, signal.SIGINT)])


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of so many kB at ``place``; the function given mounts it again with other options."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def full_disks(bench: Bench) -> Iterator[str]:
    whole = sum(path.stat().st_size for path in (bench.home / "right").rglob("*") if path.is_file()) // 1024
    for k in range(12):
        root = bench.home / f"disk{k}"
        with small_disk(root, 8 + whole * k // 12) as remount:
            status, said = bench.run(root)
            end = bench.end(root, status, said)
            remount(f"size={8 * whole}k")
            yield (bench.again(root) or end) if end in ("right", "error") else end


def read_only(bench: Bench) -> Iterator[str]:
    """Before the first file, in the middle, and after the last: a finished run is read and found finished."""
    for k, stage in enumerate(("empty", "interrupted", "finished")):
        root = bench.home / f"ro{k}"
        with small_disk(root, 65536) as remount:
            if stage == "interrupted":
                bench.run(root, lambda child: (time.sleep(bench.seconds / 2), os.kill(child, signal.SIGKILL))[0])
            elif stage == "finished":
                bench.run(root)
            remount("ro")
            status, said = bench.run(root)
            end = bench.end(root, status, said)
            remount("rw")
            yield (bench.again(root) or end) if end in ("right", "error") else end


def twins(bench: Bench, count: int) -> Iterator[str]:
    for k in range(count):
        root, pause = bench.home / f"twin{k}", bench.random.uniform(0, bench.seconds)
        other: list[tuple[int, str]] = []

        def second(child: int, root: Path = root, pause: float = pause, other: list[tuple[int, str]] = other) -> None:
            time.sleep(pause)
            log = bench.home / f"other-{root.name}.log"
            twin = os.fork()
            if twin == 0:
                _child(bench.home, root, log)
            _, status = os.waitpid(twin, 0)
            other.append((os.waitstatus_to_exitcode(status), log.read_text().strip()))

        ends = [bench.run(root, second), *other]
        wrong = [
            f"exit status {status}: {said[-300:]}"
            for status, said in ends
            if status not in (0, 2) or len(said.splitlines()) > 1
        ]
        yield wrong[0] if wrong else bench.again(root) or ("error" if any(status for status, _ in ends) else "right")
        shutil.rmtree(root)


def clocks(bench: Bench) -> Iterator[str]:
    """Interrupted, then every file a year older or newer than it is."""
    for k, shift in enumerate((-365, -1, 1, 365)):
        root = bench.home / f"clock{k}"
        bench.run(root, lambda child: (time.sleep(bench.seconds * 0.6), os.kill(child, signal.SIGKILL))[0])
        for path in (*root.rglob("*"), *(bench.home / "source").iterdir()):
            os.utime(path, (time.time() + shift * 86400,) * 2)
        yield bench.again(root) or "right"
        shutil.rmtree(root)


def damage(bench: Bench, root: Path) -> Iterator[Path]:
    """Every file of ``root`` in turn, cut in half and with one bit flipped at start, middle and end; then as it was."""
    for path in sorted(file for file in root.rglob("*") if file.is_file() and file.name != "report.html"):
        whole = path.read_bytes()
        places = sorted({0, len(whole) // 2, len(whole) - 1, bench.random.randrange(len(whole))})
        flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
        for changed in (whole[: len(whole) // 2], *flipped):
            path.write_bytes(changed)
            yield path
        path.write_bytes(whole)


def damaged_finished(bench: Bench) -> Iterator[str]:
    """verify names it, and ``load`` and ``distill`` do not use it in silence."""
    root = bench.home / "damaged"
    shutil.copytree(bench.home / "right", root)
    for name in RUNS:
        shutil.rmtree(root / name / "progress", ignore_errors=True)
        for path in damage(bench, root / name):
            report = verify(root / name)
            used = {"manifest.json", "student.safetensors", "plan.json"} if name == "net" else set()
            if report.ok:
                yield f"verify does not see a change of {path.name}"
            elif path.name in used and _loads(root / name):
                yield f"load uses a changed {path.name}"
            else:
                yield "error"
    shutil.rmtree(root)


def _loads(folder: Path) -> bool:
    child = os.fork()
    if child == 0:
        code = 0
        try:
            mpcore.pipeline.load(folder)
        except ValueError:
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def damaged_unfinished(bench: Bench) -> Iterator[str]:
    """A damaged file of an interrupted run is made again, or refused in one line."""
    for share in (0.4, 0.7, 0.95):
        root = bench.home / f"cut{share}"
        bench.run(root, lambda child, s=share: (time.sleep(bench.seconds * s), os.kill(child, signal.SIGKILL))[0])
        shutil.copytree(root, bench.home / "kept")
        for name in sorted({str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}):
            shutil.rmtree(root)
            shutil.copytree(bench.home / "kept", root)
            path = root / name
            whole = bytearray(path.read_bytes())
            if not whole or path.name.endswith(".partial"):
                continue
            whole[bench.random.randrange(len(whole))] ^= 1
            path.write_bytes(whole)
            status, said = bench.run(root)
            if status == 0:
                yield f"{name}: {found}" if (found := bench.faults_of(root)) else "right"
            else:
                clear = said.startswith("mpcore: ") and len(said.splitlines()) == 1
                yield "error" if clear else f"{name}: exit status {status}: {said[-300:]}"
        shutil.rmtree(root)
        shutil.rmtree(bench.home / "kept")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpcore-faults-") as home:
        bench = Bench(Path(home), options.seed)
        print(f"an undisturbed run takes {bench.seconds:.1f} s\n")
        print("| fault | cases | right at once | stopped or refused | wrong |\n| --- | --- | --- | --- | --- |")
        bench.row("kill -9 at a random moment, then again", kills(bench, options.kills))
        bench.row("Ctrl-C twice within 50 ms, then again", interrupts(bench, max(1, options.kills // 2)))
        if os.geteuid() == 0 and shutil.which("mount"):
            bench.row("disk full at 12 sizes, then larger, again", full_disks(bench))
            bench.row("read-only folder: empty, interrupted, finished", read_only(bench))
        bench.row("two runs in one folder", twins(bench, 10))
        bench.row("file times a day or year off on resume", clocks(bench))
        bench.row("finished run: file cut or a bit flipped", damaged_finished(bench))
        bench.row("interrupted run: a bit flipped", damaged_unfinished(bench))
    return int(any(wrong for _, _, wrong in bench.rows))


if __name__ == "__main__":
    sys.exit(main())
