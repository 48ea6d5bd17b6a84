from __future__ import annotations

import numpy as np
import pytest

from mpcore.folder import RunFolder, hashes, read_json, renew_manifest, trusted
from mpcore.records import Manifest, Pattern, PlannedLayer

PRINT = {"seed": 0, "recipe": {"pattern": "2:4"}}
PLAN = PlannedLayer("a", Pattern("2:4"), (2, 4), 4, 0.9, 0.01, 0.02)


def test_a_folder_opens_again_with_the_same_fingerprint(tmp_path):
    RunFolder(tmp_path / "run", PRINT)
    assert not RunFolder(tmp_path / "run", PRINT).finished


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    RunFolder(tmp_path, PRINT)
    with pytest.raises(ValueError, match=r"holds another run \(seed was 0, now 1\)"):
        RunFolder(tmp_path, {**PRINT, "seed": 1})


def test_of_several_differences_the_one_that_the_user_set_is_named(tmp_path):
    RunFolder(tmp_path, {**PRINT, "calibration_sha256": "a", "model_sha256": "b"})
    others = {"calibration_sha256": "x", "model_sha256": "y", "seed": 1, "recipe": {"pattern": "1:4", "permute": True}}
    expected = [
        (others, r"\(recipe\.pattern was '2:4', now '1:4'\); choose"),
        ({**others, "recipe": PRINT["recipe"]}, r"\(seed was 0, now 1\); choose"),
        ({**others, **PRINT}, r"\(model_sha256 was 'b', now 'y'\); the model's weights differ; choose"),
        ({"pattern": "2:4", "checkpoint_sha256": "z"}, "holds the run of a model, and a checkpoint was given; choose"),
    ]
    for fingerprint, message in expected:
        with pytest.raises(ValueError, match=message):
            RunFolder(tmp_path, fingerprint)


def test_a_run_that_was_refused_before_its_first_file_leaves_the_folder_to_another(tmp_path):
    (tmp_path / "there").mkdir()
    for name, kept in (("new", False), ("there", True)):
        RunFolder(tmp_path / name, PRINT).forsake()
        assert (tmp_path / name).exists() is kept
        RunFolder(tmp_path / name, {**PRINT, "seed": 1}).release()
    begun = RunFolder(tmp_path / "begun", PRINT)
    begun.store_layer(0, PLAN, {"weight": np.ones((2, 4), np.float32)})
    begun.forsake()
    begun.release()
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        RunFolder(tmp_path / "begun", {**PRINT, "seed": 1})


def test_a_folder_of_strangers_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"is no run of mpcore \(it holds 'thesis.tex'\)"):
        RunFolder(tmp_path, PRINT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ValueError, match="is a file, wanted a folder"):
        RunFolder(tmp_path / "run", PRINT)


def test_a_stored_layer_comes_back_as_it_was(tmp_path):
    folder = RunFolder(tmp_path, PRINT)
    tensors = {"weight": np.ones((2, 4), np.float32), "mask": np.array([[True, False] * 2] * 2), "shift": np.ones(2)}
    folder.store_layer(3, PLAN, tensors)
    plan, found = folder.stored_layer(3)
    assert plan == PLAN
    assert all(
        np.array_equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors
    )
    assert folder.stored_layer(4) is None


def test_hashes_leave_out_the_manifest_the_report_and_the_unfinished(tmp_path):
    for name in ("plan.json", "manifest.json", "report.html", ".plan.json.1.partial"):
        (tmp_path / name).write_text("{}")
    assert list(hashes(tmp_path)) == ["plan.json"]


@pytest.mark.parametrize("fingerprint", ["7", '"x"', "[]", '{"recipe": [1]}', "null"])
def test_a_damaged_fingerprint_is_named(tmp_path, fingerprint):
    (tmp_path / "run.json").write_text(f'{{"fingerprint": {fingerprint}}}')
    with pytest.raises(ValueError, match=r"run\.json: damaged, its fingerprint is no object with a recipe"):
        RunFolder(tmp_path, {"seed": 0})


def test_a_damaged_json_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: not a JSON document"):
        RunFolder(tmp_path, PRINT)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list, wanted an object"):
        read_json(tmp_path / "run.json")


def test_a_temporary_folder_goes_with_the_run():
    folder = RunFolder(None, PRINT)
    path = folder.path
    assert path.exists()
    del folder
    assert not path.exists()


def test_a_file_that_changed_between_two_sessions_is_refused(tmp_path):
    folder = RunFolder(tmp_path, PRINT)
    folder.store_layer(0, PLAN, {"weight": np.ones((2, 4), np.float32)})
    file = tmp_path / "progress" / "0000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"0000\.safetensors: has changed since the interrupted run"):
        folder.stored_layer(0)


def test_a_file_without_its_hash_counts_as_unfinished(tmp_path):
    folder = RunFolder(tmp_path, PRINT)
    (tmp_path / "budget.json").write_text("{")
    assert folder.kept("budget.json") is None


def test_two_runs_in_one_folder_do_not_mix(tmp_path):
    first = RunFolder(tmp_path, PRINT)
    with pytest.raises(ValueError, match="another process is at work"):
        RunFolder(tmp_path, PRINT)
    first.release()
    RunFolder(tmp_path, PRINT)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.json"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    (tmp_path / "progress").mkdir(parents=True)
    for name in (".plan.json.1.partial", "progress/.0001.safetensors.2.partial"):
        (tmp_path / name).write_text("half")
    (tmp_path / "run.json").write_text('{"fingerprint": {"seed": 0, "recipe": {"pattern": "2:4"}}}')
    RunFolder(tmp_path, PRINT)
    assert not list(tmp_path.rglob(".*.partial"))


def test_renewing_the_manifest_does_not_bless_other_files(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("1")
    manifest = Manifest("0", 0, {}, {}, {}, hashes(tmp_path))
    manifest.write(tmp_path / "manifest.json")
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("2")
    renew_manifest(tmp_path, ("b.json", "none.json"))
    renewed = Manifest.read(tmp_path / "manifest.json")
    assert trusted(tmp_path, "b.json", renewed).read_text() == "2"
    with pytest.raises(ValueError, match=r"a\.json: has changed"):
        trusted(tmp_path, "a.json", renewed)
