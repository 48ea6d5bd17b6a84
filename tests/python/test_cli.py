"""The command line: JSON or tables on stdout, one line on stderr for a mistake, exit codes that mean it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pages
import pytest
from helpers import write_run
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

import mpcore
from mpcore.checkpoint import save_tensors
from mpcore.cli.app import PANELS, app
from mpcore.cli.session import session
from mpcore.records import Certificate, ConvergenceError

COMMANDS = [function.__name__ for commands in PANELS.values() for function, _ in commands]
NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def complaint(result: Result, code: int = 2) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("mpcore: ")
    return line


def test_the_commands_are_those_of_the_documentation() -> None:
    expected = "inspect prune distill evaluate verify report doctor audit demo bench"
    assert sorted(COMMANDS) == sorted(expected.split())


def test_help_lists_every_command_with_a_sentence() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert name in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    (command,) = [c for c in app.registered_commands if c.callback is not None and c.callback.__name__ == name]
    assert command.callback is not None
    assert command.callback.__doc__
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Example: mpcore" in result.stdout
    for option in ("--json", "--seed", "--out", "--quiet"):
        assert option in result.stdout


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"mpcore {mpcore.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["verify"], ["verify", "x", "--no-such-option"], ["bench", "--repeats", "0"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_help_of_the_installed_command_needs_no_torch(tmp_path: Path) -> None:
    for name in ("torch", "matplotlib", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('must not be imported')")
    done = subprocess.run(
        [sys.executable, "-c", "from mpcore.cli import main; main()", "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Prune and recover" in done.stdout


# verify and report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_verify_prints_exactly_the_three_fields(folder: Path) -> None:
    found = document(run("verify", folder, "--json"))
    assert set(found) == {"ok", "problems", "checked"}
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["checked"]["masks"] == 3


def test_verify_exits_with_1_and_names_layer_and_group_of_a_flipped_bit(folder: Path) -> None:
    masks = load_file(folder / "masks.safetensors")
    masks["stem.conv"] = masks["stem.conv"].copy()
    masks["stem.conv"][0, 0, 0, 0] ^= True
    save_file(masks, folder / "masks.safetensors")
    result = run("verify", folder, "--json")
    assert result.exit_code == 1
    problems = json.loads(result.stdout)["problems"]
    assert {"layer", "group", "what"} == set(problems[0])
    assert ("stem.conv", 0) in [(problem["layer"], problem["group"]) for problem in problems]
    shown = run("verify", folder)
    assert shown.exit_code == 1
    assert "stem.conv" in shown.stdout


def test_out_gets_the_same_document_as_stdout(folder: Path, tmp_path: Path) -> None:
    result = run("verify", folder, "--json", "--out", tmp_path / "deep" / "verify.json")
    assert json.loads((tmp_path / "deep" / "verify.json").read_text()) == document(result)


def test_verify_of_no_folder_is_the_users_mistake(tmp_path: Path) -> None:
    assert "no such run folder" in complaint(run("verify", tmp_path / "nothing", "--json"))


def test_report_names_the_page_it_wrote(folder: Path) -> None:
    found = document(run("report", folder, "--json"))
    assert found == {"report": str(folder / "report.html"), "bytes": (folder / "report.html").stat().st_size}
    assert run("report", folder).stdout.strip().endswith("report.html")


def test_report_of_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    assert "no finished run" in complaint(run("report", tmp_path))


@pytest.mark.parametrize(("mark", "command"), [("run.json", "prune"), ("training-0.partial", "demo")])
def test_an_interrupted_run_is_the_same_sentence_everywhere(folder: Path, mark: str, command: str) -> None:
    (folder / "manifest.json").unlink()
    (folder / "run.json").write_text("{}")
    if command == "demo":
        (folder / mark).mkdir()
    sentence = f"{folder}: interrupted run: the same `mpcore {command}` command finishes it"
    asked = [("report",), ("distill", "--train", "x.npz"), ("evaluate", "--data", "x.npz"), ("doctor",), ("inspect",)]
    for name, *options in asked:
        assert complaint(run(name, folder, *options)) == f"mpcore: {sentence}"
    result = run("verify", folder)
    assert result.exit_code == 1
    assert "".join(result.stdout.split()) == "".join(sentence.split())  # lines are folded


def test_a_pruned_checkpoint_has_no_model_to_evaluate_distil_or_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save_tensors(tmp_path / "w.safetensors", {"layers.0.up.weight": rng.normal(size=(8, 16)).astype(np.float32)})
    assert run("prune", tmp_path / "w.safetensors", "--out", tmp_path / "run", "--quiet").exit_code == 0
    asked = {"evaluation": ("evaluate", "--data", "x.npz"), "distillation": ("distill", "--train", "x.npz")}
    for use, (name, *options) in (asked | {"timing": ("doctor",)}).items():
        line = complaint(run(name, tmp_path / "run", *options))
        assert f"pruned from a checkpoint: no model class, so no {use}" in line


# inspect


def _files(folder: Path) -> dict[str, Path]:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {folder}/owned",))

    contents = {
        "missing": None,
        "truncated": (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32"',
        "text": b"hello",
        "huge header": (2**62).to_bytes(8, "little") + b"{}",
        "pickle": pickle.dumps(Evil()),
    }
    paths = {name: folder / f"{name}.{'pth' if name == 'pickle' else 'safetensors'}" for name in contents}
    for name, content in contents.items():
        if content is not None:
            paths[name].write_bytes(content)
    return paths


@pytest.mark.parametrize("name", ["missing", "truncated", "text", "huge header", "pickle"])
def test_a_file_that_cannot_be_read_is_one_line_and_runs_nothing(tmp_path: Path, name: str) -> None:
    path = _files(tmp_path)[name]
    assert str(path) in complaint(run("inspect", path, "--json"))
    assert not (tmp_path / "owned").exists()


def test_inspect_tells_noise_from_signal_in_every_matrix_of_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 120))
    spiked = noise + 3 * np.outer(rng.normal(size=60), rng.normal(size=120))
    save_tensors(tmp_path / "w.safetensors", {"noise": noise, "spiked": spiked, "bias": np.ones(3)})
    found = document(run("inspect", tmp_path / "w.safetensors", "--json", "--quiet"))
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert {"name", "shape", "edge", "sigma_plus", "n_spikes", "bulk_fraction", "gof"} <= set(layers["noise"])
    assert (layers["noise"]["n_spikes"], layers["spiked"]["n_spikes"]) == (0, 1)
    assert layers["noise"]["shape"] == [60, 120]
    assert [entry["name"] for entry in found["skipped"]] == ["bias"]
    shown = run("inspect", tmp_path / "w.safetensors", "--quiet")
    assert "spiked" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--alpha", "0.9", "less than or equal to 0.5"), ("--alpha", "0", "should be greater than"),
     ("--bootstrap", "7", "7 is neither 0 nor at least 100")],
)  # fmt: skip
def test_a_level_or_a_count_out_of_range_names_its_option(option: str, value: str, message: str) -> None:
    result = run("inspect", "w.safetensors", option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert message in result.stderr


def test_inspect_of_a_run_says_which_file_it_reads(tmp_path: Path) -> None:
    for name in ("model", "dense"):
        save_tensors(tmp_path / f"{name}.safetensors", {"w": np.random.default_rng(0).normal(size=(8, 16))})
    for name in ("run.json", "manifest.json"):
        (tmp_path / name).write_text("{}")
    result = run("inspect", tmp_path)
    assert f"{tmp_path}/model.safetensors: 1 layers" in result.stdout.replace("\n", "")
    assert f"reads {tmp_path}/model.safetensors; name {tmp_path}/dense.safetensors" in result.stderr
    assert document(run("inspect", tmp_path, "--json", "-q"))["source"] == f"{tmp_path}/model.safetensors"


def test_inspect_reads_a_model_that_a_function_builds(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(NETWORK)
    found = document(run("inspect", f"{tmp_path}/network.py:make", "--json", "--quiet"))
    assert [layer["shape"] for layer in found["layers"]] == [[32, 16], [32, 32], [3, 32]]


# the whole way


@pytest.fixture(scope="module")
def bench_top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and data for it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "network.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(160, 16)).astype(np.float32)
    targets = (inputs @ rng.normal(size=(16, 3))).argmax(axis=1)
    np.savez(folder / "train.npz", inputs=inputs[:96], targets=targets[:96])
    np.savez(folder / "held.npz", inputs=inputs[96:], targets=targets[96:])
    return folder


def test_prune_distill_evaluate_verify_and_report_work_from_the_command_line(bench_top: Path) -> None:
    out, model = bench_top / "run", f"{bench_top}/network.py:make"
    data = ("--calibration", bench_top / "train.npz", "--evaluation", bench_top / "held.npz")
    pruned = document(run("prune", model, *data, "--out", out, "--pattern", "2:4", "--json", "--quiet"))
    assert pruned["folder"] == str(out)
    assert [row["model"] for row in pruned["rows"]] == ["dense", "pruned"]
    again = document(run("prune", model, *data, "--out", out, "--pattern", "2:4", "--json", "--quiet"))
    assert again == pruned, "a finished run is taken as it is"

    copy = bench_top / "distilled"
    how = ("--epochs", "1", "--optimizer", "sgd", "--accumulate", "2", "--precision", "bfloat16")
    distilled = document(
        run("distill", out, "--train", bench_top / "train.npz", *how, "--out", copy, "--json", "--quiet")
    )
    assert distilled["folder"] == str(copy)
    student = Certificate.read(copy / "certificate-student.json")
    assert distilled["certificate"]["stable_path"] == student.stable_path
    assert distilled["certificate"]["ce_bound"] == student.ce_bound != pruned["certificate"]["ce_bound"]
    shown = run("distill", out, "--train", bench_top / "train.npz", *how, "--out", copy, "--quiet")
    assert f"certified, student: {student.stable} of {student.samples} labels" in shown.stdout
    hint = f"distilled: not evaluated; run `mpcore evaluate {copy} --data DATA`"
    assert "".join(hint.split()) in "".join(shown.stdout.split())  # lines are folded
    assert not (out / "student.safetensors").exists()

    table = document(run("evaluate", copy, "--data", bench_top / "held.npz", "--json", "--quiet"))
    assert [row["model"] for row in table["rows"]] == ["dense", "pruned", "distilled"]
    assert table["rows"][1]["top1"] == pruned["rows"][1]["top1"]
    assert table["rows"][0]["agreement"] == 1.0
    for finished in (out, copy):
        verified = run("verify", finished, "--json")
        assert verified.exit_code == 0, verified.stdout
        assert document(run("report", finished, "--json"))["bytes"] > 10_000


def test_other_batches_are_another_run_and_the_line_says_why(bench_top: Path, tmp_path: Path) -> None:
    model, data = f"{bench_top}/network.py:make", ("--calibration", bench_top / "train.npz")
    begun = run("prune", model, *data, "--recipe", "magnitude", "--out", tmp_path / "run", "--quiet")
    assert begun.exit_code == 0, begun.stderr
    again = run("prune", model, *data, "--recipe", "magnitude", "--out", tmp_path / "run", "--batch-size", "8", "-q")
    assert "the calibration batches differ in inputs, labels, order or size (is the DataLoader" in complaint(again)


def test_an_output_folder_that_holds_something_else_is_refused_and_left_alone(bench_top: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    arguments = ("--calibration", bench_top / "train.npz", "--out", tmp_path, "--quiet")
    assert "precious.txt" in complaint(run("prune", f"{bench_top}/network.py:make", *arguments))
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--pattern": "4:2"}, "1 <= N < M <= 32"),
        ({"--recipe": "nothing"}, "recipe 'nothing' is not in the package"),
        ({"--recipe": "nothing.toml"}, "nothing.toml"),
        ({"--calibration": "nothing.npz"}, "nothing.npz: no such file or folder"),
        ({"--recipe": "skip.toml"}, "skip: 'nothing*' matches no layer"),
        ({"--recipe": "tome.toml"}, "recipe: tome = 4, but "),
    ],
)
def test_a_mistake_in_prune_is_one_line(bench_top: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    (bench_top / "skip.toml").write_text('skip = ["nothing*"]')
    (bench_top / "tome.toml").write_text("tome = 4")
    if "toml" in (recipe := changes.get("--recipe", "")) and (bench_top / recipe).exists():
        changes = {"--recipe": f"{bench_top / recipe}"}
    options = {"--calibration": bench_top / "train.npz", "--out": tmp_path / "run", **changes}
    pairs = [part for pair in options.items() for part in pair]
    assert message in complaint(run("prune", f"{bench_top}/network.py:make", *pairs, "--quiet"))
    assert not (tmp_path / "run").exists()


def test_samples_that_the_model_does_not_take_are_refused_with_their_shape(bench_top: Path, tmp_path: Path) -> None:
    (tmp_path / "strict.py").write_text(
        "from torch import nn\n\nclass Strict(nn.Linear):\n    def forward(self, x):\n"
        "        assert x.shape[1] == 16, f'width {x.shape[1]}'\n        return super().forward(x)\n\n"
        "def make():\n    return nn.Sequential(Strict(16, 8), nn.Linear(8, 3))\n"
    )
    np.savez(tmp_path / "narrow.npz", inputs=np.ones((8, 12), np.float32))
    model, narrow, out = f"{tmp_path}/strict.py:make", tmp_path / "narrow.npz", tmp_path / "run"
    how = ("--recipe", "magnitude", "--out", out, "--quiet")
    assert run("prune", model, "--calibration", bench_top / "train.npz", *how).exit_code == 0
    for command in (
        ("prune", model, "--calibration", narrow, "--out", tmp_path / "other"),
        ("evaluate", model, "--data", narrow),
        ("evaluate", out, "--data", narrow),
        ("distill", out, "--train", narrow),
    ):
        line = complaint(run(*command, "--quiet"))
        assert "narrow.npz: the model does not take inputs of shape (1, 12), torch.float32 (width 12)" in line


def test_labels_that_are_no_classes_of_the_model_are_refused_before_the_work(bench_top: Path, tmp_path: Path) -> None:
    train, out = bench_top / "train.npz", tmp_path / "run"
    inputs = np.load(train)["inputs"]
    np.savez(tmp_path / "wrong.npz", inputs=inputs, targets=np.arange(len(inputs)) % 4)
    model, how = f"{bench_top}/network.py:make", ("--recipe", "magnitude", "--out", out, "--quiet")
    for kind, data in (("calibration", ("wrong.npz", train)), ("evaluation", (train, "wrong.npz"))):
        given = ("--calibration", tmp_path / data[0], "--evaluation", tmp_path / data[1])
        line = complaint(run("prune", model, *given, *how))
        assert line.startswith(f"mpcore: {kind}: batch 0: target 3 is not one of the 3 classes")
        assert not out.exists()
    assert run("prune", model, "--calibration", train, *how).exit_code == 0
    line = complaint(run("distill", out, "--train", tmp_path / "wrong.npz", "--quiet"))
    assert line.startswith("mpcore: train: target 3 is not one of the 3 classes")


def test_distill_wants_a_finished_run(bench_top: Path, tmp_path: Path) -> None:
    arguments = ("--train", bench_top / "train.npz", "--out", tmp_path / "copy")
    assert "no finished run" in complaint(run("distill", tmp_path, *arguments))


# what every command shares


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("score: 770 columns\nis not a multiple"), 2, "score: 770 columns is not a multiple"),
        (TypeError("W: dtype int64"), 2, "W: dtype int64"),
        (KeyError("no layer 'b'"), 2, "mpcore: no layer 'b'"),
        (OSError(errno.ENOSPC, "No space left on device", "run/a.json"), 2, "run/a.json: no space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "run"), 2, "run: permission denied"),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), 2, "pip install 'mpcore[torch]'"),
        (ModuleNotFoundError("No module named 'jinja2'", name="jinja2"), 2, "pip install 'mpcore[report]'"),
        (ModuleNotFoundError("No module named 'sklearn.x'", name="sklearn.x"), 2, "pip install 'mpcore[demo]'"),
        (ImportError("cannot import name 'x'"), 2, "cannot import name 'x'"),
        (MemoryError(), 2, "out of memory"),
        (ConvergenceError("svdvals: 30 sweeps"), 1, "svdvals: 30 sweeps"),
        (RuntimeError("mat1 and mat2"), 1, "mat1 and mat2"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr("mpcore.checkpoint.open_weights", _raise(error))
    assert message in complaint(run("inspect", tmp_path / "w.safetensors", "--json"), code)


def _raise(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


def test_ctrl_c_in_a_resumable_command_says_so_once_the_run_has_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mpcore.models.source.load_model", _raise(KeyboardInterrupt()))
    arguments = ("prune", "timm:x", "--calibration", tmp_path, "--out", tmp_path / "run")
    assert complaint(run(*arguments), 130) == "mpcore: interrupted"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert complaint(run(*arguments), 130) == "mpcore: interrupted; the same command resumes the run"
    assert complaint(run("evaluate", "timm:x", "--data", tmp_path), 130) == "mpcore: interrupted"


def test_a_real_interrupt_ends_the_process_with_130_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text("import os, signal\ndef make():\n    os.kill(os.getpid(), signal.SIGINT)\n")
    program = "from mpcore.cli import main; main()"
    arguments = ["prune", "network.py:make", "--calibration", "x.npz", "--out", "run"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "mpcore: interrupted"


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MPCORE_TRACEBACK", "1")
    result = run("inspect", tmp_path / "nothing.safetensors")
    assert isinstance(result.exception, FileNotFoundError)


def test_a_defect_of_ours_is_not_dressed_up_as_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mpcore.checkpoint.open_weights", _raise(AssertionError("ours")))
    assert isinstance(run("inspect", tmp_path / "w.safetensors").exception, AssertionError)


def test_what_libraries_print_does_not_reach_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    with session(json=True) as console:
        print("downloading...")
        console.emit({"answer": np.float32(1.5), "nan": float("nan")})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"answer": 1.5, "nan": None}
    assert err == "downloading...\n"


def test_quiet_keeps_notes_from_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with session(json=False, quiet=quiet) as console:
            console.note("working")
            assert console.progress is not quiet
    assert capsys.readouterr().err == "working\n"


def test_a_full_disk_leaves_no_half_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setattr("os.fsync", _raise(OSError(errno.ENOSPC, "No space left on device")))
    result = run("verify", folder, "--out", tmp_path / "out" / "verify.json")
    assert "no space left on device" in complaint(result)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_copied_run_is_taken_up_and_never_overwrites_something_else(folder: Path, tmp_path: Path) -> None:
    from mpcore.cli.distill import _copy

    first = tmp_path / "copy"
    _copy(folder, first)
    (first / "mark").write_text("still here")
    _copy(folder, first)
    assert (first / "mark").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="exists and is no run"):
        _copy(folder, tmp_path / "other")
    shutil.rmtree(first)


# doctor, audit and bench


def test_doctor_reports_the_machine() -> None:
    facts = document(run("doctor", "--json"))["environment"]
    assert facts["mpcore"] == mpcore.__version__
    assert facts["numpy"] == np.__version__
    assert int(facts["cores"]) >= 1


def test_doctor_gives_every_layer_a_verdict(bench_top: Path) -> None:
    found = document(run("doctor", f"{bench_top}/network.py:make", "--input", "16", "--json", "--quiet"))
    assert len(found["layers"]) == 3
    assert all(row["reason"] or row["gain"] for row in found["layers"])


@pytest.mark.parametrize("shape", ["3,x", "0,4", ""])
def test_doctor_refuses_a_shape_that_is_none(bench_top: Path, shape: str) -> None:
    assert "wanted lengths such as 3,224,224" in complaint(
        run("doctor", f"{bench_top}/network.py:make", "--input", shape)
    )


def test_audit_measures_or_says_that_it_did_not() -> None:
    found = document(run("audit", "--json", "--quiet"))
    assert found["baseline"]
    assert all(row["gain"] is not None or row["reason"] for row in found["layers"])


def test_bench_times_every_routine_beside_a_named_peer() -> None:
    found = document(run("bench", "--repeats", "1", "--json", "--quiet"))
    assert {row["name"].split()[0] for row in found["rows"]} >= {"fit_edge", "nm_mask", "optimize_permutation"}
    assert all(row["ratio_min"] > 0 and row["ratio_median"] > 0 and row["peer"] for row in found["rows"])


# the same mistakes in Python


def test_what_is_no_module_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    import torch

    net = torch.nn.Linear(4, 2)
    held = SimpleNamespace(model=net)
    for call in (mpcore.evaluate, mpcore.accelerate):
        for given, hint in (
            ("run", r"model: a str, wanted .*mpcore\.load\(folder, module\)"),
            (tmp_path, r"wanted .*mpcore\.load\(folder\)"),
            (held, r"model: a SimpleNamespace, wanted .*pass its \.model"),
            (net.state_dict(), "wanted .*load_state_dict"),
            (3, "model: a int, wanted a torch.nn.Module; pass the module itself"),
        ):
            with pytest.raises(TypeError, match=hint):
                call(given, [torch.zeros(2, 4)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="teacher: a str, wanted"):
        mpcore.evaluate(net, [torch.zeros(2, 4)], teacher="dense")  # type: ignore[arg-type]


def test_an_example_that_is_no_tensor_is_refused_with_what_to_pass() -> None:
    import torch

    net, x = torch.nn.Linear(4, 2), torch.zeros(2, 4)
    with pytest.raises(TypeError, match=r"example_input: a tuple, wanted one torch tensor; .*pass its inputs alone"):
        mpcore.accelerate(net, (x, torch.zeros(2)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"example_input: a dict, wanted one torch tensor; .*wrapper"):
        mpcore.accelerate(net, {"x": x})  # type: ignore[arg-type]


def test_the_submodules_that_the_documentation_names_are_there_after_import_mpcore() -> None:
    program = "import sys, mpcore; print(mpcore.compensate.admm and mpcore.certify.wilson and 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_recipes_of_the_documentation_are_recipes(tmp_path: Path) -> None:
    from mpcore.models.recipe import Recipe

    found = [block for page in pages.pages() for block in pages.blocks(page) if block.language == "toml"]
    assert any("skip" in block.code for block in found)
    for block in found:
        (tmp_path / "recipe.toml").write_text(block.code)
        Recipe.load(tmp_path / "recipe.toml")
