"""verify() accepts an honest run and names every kind of damage."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import PATTERNS, seal, write_run
from safetensors.numpy import load_file, save_file

from mpcore.records import (
    Budget,
    Certificate,
    EvalTable,
    LayerCertificate,
    LayerInventory,
    Manifest,
    MaskPlan,
    Pattern,
    Problem,
    VerifyReport,
)
from mpcore.verify import verify

FC1 = "blocks.0.mlp.fc1"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "honest")


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "copy"))


def whats(report: VerifyReport) -> str:
    assert not report.ok
    return "\n".join(problem.what for problem in report.problems)


def edit_tensor(path: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    tensors = load_file(path)
    tensors[name] = tensors[name].copy()
    change(tensors[name])
    save_file(tensors, path)


def edit_record(folder: Path, kind: type, name: str, **changes: object) -> None:
    record = kind.read(folder / name)
    dataclasses.replace(record, **changes).write(folder / name)
    seal(folder)


def test_an_honest_run_holds_and_everything_in_it_was_looked_at(honest: Path) -> None:
    report = verify(honest)
    assert report.ok, report.problems
    assert report.checked["masks"] == 3
    assert report.checked["groups"] == 96 * 48 // 4 + 48 * 96 // 4 + 24 * 144 // 16
    assert report.checked["files"] == len(list(honest.iterdir())) - 1
    assert report.checked["intervals"] == 8


def test_a_run_without_distillation_or_certificate_holds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", student=False)
    for name in ("certificate.json", "eval.json", "dense.safetensors"):
        (run / name).unlink()
    seal(run)
    assert verify(run).ok


def test_a_flipped_mask_bit_is_reported_by_hash_and_by_layer_and_group(run: Path) -> None:
    def flip(mask: np.ndarray) -> None:
        mask[2, 7] ^= True

    edit_tensor(run / "masks.safetensors", FC1, flip)
    report = verify(run)
    assert "masks.safetensors has changed" in whats(report)
    assert [(p.layer, p.group) for p in report.problems if p.group is not None] == [(FC1, 2 * 12 + 1)]


def test_groups_of_a_convolution_run_along_channels_within_one_kernel_position(run: Path) -> None:
    def flip(mask: np.ndarray) -> None:
        mask[1, 5, 0, 2] ^= True

    edit_tensor(run / "masks.safetensors", "stem.conv", flip)
    (problem,) = [p for p in verify(run).problems if p.group is not None]
    assert (problem.layer, problem.group) == ("stem.conv", 1 * 9 + 2)


def test_a_mask_that_is_wrong_throughout_is_summed_up(run: Path) -> None:
    edit_tensor(run / "masks.safetensors", FC1, lambda mask: mask.fill(True))
    report = verify(run)
    assert "1152 of 1152 groups do not keep exactly 2:4" in whats(report)
    assert len(report.problems) < 20


def test_a_mask_of_another_dtype_or_shape_is_reported(run: Path) -> None:
    masks = load_file(run / "masks.safetensors")
    masks[FC1] = masks[FC1].astype(np.uint8)
    masks["stem.conv"] = masks["stem.conv"][:, :3]
    save_file(masks, run / "masks.safetensors")
    text = whats(verify(run))
    assert "mask is U8, wanted BOOL" in text
    assert "does not divide into groups of 16" in text


def test_masks_and_patterns_must_name_the_same_layers(run: Path) -> None:
    masks = load_file(run / "masks.safetensors")
    masks["other"] = masks.pop(FC1)
    save_file(masks, run / "masks.safetensors")
    text = whats(verify(run))
    assert "has a pattern but no mask" in text
    assert "has a mask but no pattern" in text


@pytest.mark.parametrize("file", ["model.safetensors", "student.safetensors"])
@pytest.mark.parametrize("value", [-0.0, 1e-30])
def test_a_pruned_weight_that_is_not_plus_zero_is_reported(run: Path, file: str, value: float) -> None:
    mask = load_file(run / "masks.safetensors")[FC1]
    place = tuple(np.argwhere(~mask)[0])

    def write(weight: np.ndarray) -> None:
        weight[place] = value

    edit_tensor(run / file, f"{FC1}.weight", write)
    seal(run)
    assert f"{file}: 1 pruned weights are not +0.0" in whats(verify(run))


@pytest.mark.parametrize("file", ["model.safetensors", "student.safetensors", "dense.safetensors"])
def test_a_value_that_is_not_finite_is_reported(run: Path, file: str) -> None:
    edit_tensor(run / file, "head.bias", lambda bias: bias.fill(np.nan))
    assert f"{file}: head.bias holds NaN or infinity" in whats(verify(run))


def test_a_missing_weight_and_a_weight_of_another_shape_are_reported(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    del tensors[f"{FC1}.weight"]
    tensors["stem.conv.weight"] = tensors["stem.conv.weight"][:4]
    save_file(tensors, run / "model.safetensors")
    text = whats(verify(run))
    assert f"model.safetensors holds no {FC1}.weight" in text
    assert "weight has shape (4, 16, 3, 3), the mask (24, 16, 3, 3)" in text


def test_a_folder_without_a_manifest_is_an_interrupted_run(run: Path) -> None:
    (run / "manifest.json").unlink()
    assert "interrupted run" in whats(verify(run))


def test_a_folder_that_does_not_exist_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize("name", sorted(write_name for write_name in (
    "inventory.json", "budget.json", "plan.json", "masks.safetensors", "model.safetensors",
    "certificate.json", "eval.json", "dense.safetensors", "student.safetensors", "train.jsonl",
    "calibration.safetensors")))  # fmt: skip
class TestAnyFile:
    def test_that_is_missing_is_named(self, run: Path, name: str) -> None:
        (run / name).unlink()
        assert f"{name} is missing" in whats(verify(run))

    def test_that_is_cut_short_is_named_without_a_traceback(self, run: Path, name: str) -> None:
        path = run / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert f"{name} has changed" in whats(verify(run))

    def test_that_is_empty_is_named_without_a_traceback(self, run: Path, name: str) -> None:
        (run / name).write_bytes(b"")
        assert f"{name} has changed" in whats(verify(run))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "manifest"}', '{"format": 99, "kind": "manifest"}', "\xff"])
def test_a_corrupt_manifest_is_a_problem_and_not_a_traceback(run: Path, text: str) -> None:
    (run / "manifest.json").write_text(text, encoding="latin-1")
    assert "manifest.json" in whats(verify(run))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_points_outside_the_folder_is_refused(run: Path, name: str) -> None:
    files = Manifest.read(run / "manifest.json").files
    seal(run, files={**files, name: "0" * 64})
    assert "not a file inside the run folder" in whats(verify(run))


def test_a_required_file_that_the_manifest_forgets_is_reported(run: Path) -> None:
    files = Manifest.read(run / "manifest.json").files
    seal(run, files={k: v for k, v in files.items() if k not in ("plan.json", "eval.json")})
    text = whats(verify(run))
    assert "manifest.json does not name plan.json" in text
    assert "eval.json is in the folder, but manifest.json does not name it" in text


def test_patterns_must_agree_between_budget_plan_and_manifest(run: Path) -> None:
    seal(run, patterns={**{name: Pattern(text) for name, text in PATTERNS.items()}, FC1: Pattern("1:4")})
    text = whats(verify(run))
    assert "budget.json says 2:4, manifest.json 1:4" in text
    assert "plan.json says 2:4, manifest.json says 1:4" in text
    assert "mask keeps 2 of 4 weights, wanted 1" in text


def test_a_budget_that_does_not_add_up_is_reported(run: Path) -> None:
    budget = Budget.read(run / "budget.json")
    wrong = dataclasses.replace(budget.layers[0], density=0.25)
    edit_record(run, Budget, "budget.json", layers=(wrong, *budget.layers[1:]))
    assert "density is not 0.5" in whats(verify(run))


def test_an_order_that_is_no_permutation_is_reported(run: Path) -> None:
    (group,) = MaskPlan.read(run / "plan.json").groups
    wrong = dataclasses.replace(group, order=(group.order[1], *group.order[1:]))
    edit_record(run, MaskPlan, "plan.json", groups=(wrong,))
    assert "order is not a permutation" in whats(verify(run))


def test_a_kept_score_above_its_bound_is_reported(run: Path) -> None:
    (group,) = MaskPlan.read(run / "plan.json").groups
    edit_record(run, MaskPlan, "plan.json", groups=(dataclasses.replace(group, kept=84.5, efficacy=0.9),))
    assert "kept 84.5 is above upper_bound 84.0" in whats(verify(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": ()}, "an order of 0 channels for a layer that takes 96"),
        ({"order": (1, 0, 3, 2, 4)}, "an order of 5 channels for a layer that takes 96"),
        ({"consumers": ("nothing",)}, "for a layer that takes 0"),
        ({"output_change": 1e9}, "output_change is 1000000000.0"),
        ({"kept_identity": 84.5, "efficacy": -4.0}, "kept_identity 84.5 is above upper_bound 84.0"),
        ({"row_bound": 83.5, "efficacy": 2.5 / 3.5}, "upper_bound 84.0 is above row_bound 83.5"),
    ],
)
def test_claims_of_a_permutation_are_checked(run: Path, changes: dict[str, object], message: str) -> None:
    (group,) = MaskPlan.read(run / "plan.json").groups
    edit_record(run, MaskPlan, "plan.json", groups=(dataclasses.replace(group, **changes),))
    assert message in whats(verify(run))


def test_claims_of_a_plan_are_checked(run: Path) -> None:
    first, *rest = MaskPlan.read(run / "plan.json").layers
    edit_record(run, MaskPlan, "plan.json", layers=(dataclasses.replace(first, relative_error=math.inf), *rest))
    assert "plan.json: an output error is inf" in whats(verify(run))
    edit_record(run, MaskPlan, "plan.json", layers=(first, first, *rest))
    assert "plan.json: a layer is listed twice" in whats(verify(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": ()}, "shape () is that of no weight"),
        ({"shape": (96, -48)}, "shape (96, -48) is that of no weight"),
        ({"shape": (10**300, 10**300)}, "is that of no weight"),
        ({"prunable": False}, "is pruned, and not prunable by inventory.json"),
    ],
)
def test_claims_of_an_inventory_are_checked(run: Path, changes: dict[str, object], message: str) -> None:
    first, *rest = LayerInventory.read(run / "inventory.json").layers
    edit_record(run, LayerInventory, "inventory.json", layers=(dataclasses.replace(first, **changes), *rest))
    assert message in whats(verify(run))


def test_a_model_is_no_smaller_than_its_layers(run: Path) -> None:
    edit_record(run, LayerInventory, "inventory.json", parameters=1)
    assert "the model has 1 parameters, its prunable layers" in whats(verify(run))


def test_a_pruned_weight_of_integers_and_other_tensors_than_the_dense_ones_are_reported(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    changed = {**tensors, f"{FC1}.weight": np.ones((96, 48), np.int32), "extra": np.ones(3), "head.bias": np.zeros(9)}
    save_file(changed, run / "model.safetensors")
    seal(run)
    found = whats(verify(run))
    assert "model.safetensors: the pruned weight is I32, wanted floating point" in found
    assert "extra is in only one of model.safetensors and dense.safetensors" in found
    assert "head.bias has shape (9,) in model.safetensors and (10,) in dense.safetensors" in found


@pytest.mark.parametrize("text", ["[" * 200_000, f'{{"format": 1, "kind": "plan", "layers": {10**400}}}'])
def test_json_that_python_cannot_hold_is_a_problem(run: Path, text: str) -> None:
    for name in ("inventory.json", "plan.json", "certificate.json"):
        (run / name).write_text(text)
        seal(run)
        assert f"{name}: " in whats(verify(run))


@pytest.mark.parametrize("name", ["spectra.json", "train.jsonl", "calibration.safetensors"])
def test_a_file_of_other_content_is_a_problem(run: Path, name: str) -> None:
    (run / name).write_text("garbage")
    seal(run)
    assert name in whats(verify(run))


def test_a_corrupt_file_is_one_problem_however_often_it_is_looked_at(run: Path) -> None:
    (run / "dense.safetensors").write_text("garbage")
    seal(run)
    assert len(verify(run).problems) == 1


def test_an_integer_beyond_float64_is_a_problem(run: Path) -> None:
    text = (run / "budget.json").read_text()
    (run / "budget.json").write_text(text.replace('"density": 0.5', f'"density": {10**400}'))
    seal(run)
    assert "an integer of 401 digits is no number" in whats(verify(run))


def test_a_planned_layer_must_count_what_its_mask_keeps(run: Path) -> None:
    plan = MaskPlan.read(run / "plan.json")
    edit_record(run, MaskPlan, "plan.json", layers=(dataclasses.replace(plan.layers[0], kept=7), *plan.layers[1:]))
    assert "plan.json says 7 weights stay, the mask 2304" in whats(verify(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stable": 64}, "stable is 64, the margins give"),
        ({"stable_path": 0}, "stable_path is 0, the margins give"),
        ({"unchanged": 1}, "unchanged is 1"),
        ({"ce_bound": 0.1}, "ce_bound 0.1 is not"),
        ({"ce_change": 99.0}, "ce_change 99.0 is beyond"),
        ({"samples": 63}, "64 of 63 in margin"),
        ({"accuracy_pruned": 0.1}, "accuracy 0.1 is outside"),
        ({"accuracy_dense": 0.5}, "accuracy_dense 0.5 is not that of the margins"),
        ({"accuracy_interval": (0.0, 1.0)}, r"accuracy_interval is (0.0, 1.0), the margins give"),
        ({"label_margin": (1.0,)}, "1 of 64 in label_margin"),
        ({"label_margin": (0.0,) * 64}, "a label_margin does not fit its margin"),
        ({"eta_path": (0.0,) * 64}, "an eta_path is below its eta"),
        ({"layers": (LayerCertificate("fc", 99.0, 98.0),)}, "the layers move logits by 98.0, eta_path says"),
        ({"model_sha256": "00" * 32}, "is about another model"),
        ({"model_sha256": ""}, "is about another model"),
        ({"unchanged": 64}, "accuracy moves by 0.03125, and 0.0 of the labels did"),
        ({"label_margin": None}, "certificate.json: label_margin unknown, though labels are known"),
        ({"layers": ()}, "certificate.json does not tell what it changed"),
    ],
)
def test_certificate_arithmetic_is_recomputed(run: Path, changes: dict[str, object], message: str) -> None:
    edit_record(run, Certificate, "certificate.json", **changes)
    assert message in whats(verify(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top1_ci": (0.5, 0.99)}, "interval of top1 is"),
        ({"agreement_ci": (0.0, 1.0)}, "interval of agreement is"),
        ({"top1": 1.2}, "top1 1.2 is no share"),
        ({"top5": 0.12345}, "top5 0.12345 is no share"),
        ({"n": 0}, "n is 0"),
        ({"n": 10**400}, "n is 1000"),
        ({"top5": 0.5}, "is above top5 0.5"),
        ({"top1_ci": None}, "top1 has no interval"),
        ({"kl": -0.5}, "kl is -0.5"),
    ],
)
def test_evaluation_intervals_are_recomputed(run: Path, changes: dict[str, object], message: str) -> None:
    table = EvalTable.read(run / "eval.json")
    edit_record(run, EvalTable, "eval.json", rows=(dataclasses.replace(table.rows[1], **changes), *table.rows[2:]))
    assert message in whats(verify(run))


def test_records_of_the_wrong_types_are_problems_and_not_tracebacks(run: Path) -> None:
    for name in ("certificate.json", "eval.json", "plan.json", "budget.json", "inventory.json"):
        document = json.loads((run / name).read_text())
        for key in document:
            if key not in ("format", "kind"):
                (run / name).write_text(json.dumps({**document, key: {"a": ["b"]}}))
                assert name in whats(verify(run)), (name, key)
        (run / name).write_text(json.dumps(document))


def test_a_report_survives_its_own_json(run: Path) -> None:
    (run / "plan.json").unlink()
    report = verify(run)
    assert VerifyReport.from_json(report.to_json()) == report
    assert all(isinstance(problem, Problem) for problem in report.problems)
