"""Records survive their own JSON, refuse what is not theirs, and files appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcore.records import (
    FORMAT,
    Certificate,
    EvalReport,
    EvalTable,
    LayerInfo,
    LayerInventory,
    Manifest,
    MaskPlan,
    Pattern,
    PermutedGroup,
    PlannedLayer,
    SpeedReport,
    SpeedRow,
    atomic,
    to_numpy,
)

PATTERNS = st.integers(2, 32).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m)))


@given(pair=PATTERNS)
def test_a_pattern_reads_the_same_as_text_pair_and_itself(pair: tuple[int, int]) -> None:
    pattern = Pattern(pair)
    assert Pattern(str(pattern)) == pattern == Pattern(pattern) == Pattern(list(pair))  # type: ignore[arg-type]
    assert pattern.density == pair[0] / pair[1]
    assert len({pattern, Pattern(pair)}) == 1


@pytest.mark.parametrize("wrong", ["4:2", "2:2", "0:4", "2:33", "2-4", "", "a:b", (2,), (2.0, 4), 3, None, "2:4:8"])
def test_what_is_no_pattern_is_refused_with_what_is_wanted(wrong: object) -> None:
    with pytest.raises(ValueError, match="1 <= N < M <= 32"):
        Pattern(wrong)  # type: ignore[arg-type]


RECORDS = [
    LayerInventory((LayerInfo("a", "linear", (2, 4), "mlp", True, False),), 8),
    MaskPlan(
        "activation",
        "admm",
        "asymmetric",
        (PermutedGroup(("b",), ("a",), (1, 0), 1.0, 0.5, 2.0, 1.5, 0.3, 1e-15),),
        (PlannedLayer("a", Pattern("2:4"), (2, 4), 4, 0.9, 0.1, 0.2),),
    ),
    Certificate(1, "d", "m", 0, (1.0,), (0.1,), (0.2,), 1, 1, 1, 0.2, None, None, None, None),
    EvalTable((EvalReport("dense", 4, 0.5, (0.15, 0.85), None, 1.0, None, None, None),), "four images"),
    SpeedReport("cpu", 2, "torch", (SpeedRow("a", False, "none", None, None, None, "too small"),)),
    Manifest("0.1.0", 0, {"pattern": {"*": "2:4"}}, {}, {"a": Pattern("8:16")}, {"x": "00"}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_survives_its_own_file(tmp_path: Path, record: Manifest) -> None:
    record.write(tmp_path / "record.json")
    assert type(record).read(tmp_path / "record.json") == record
    document = json.loads((tmp_path / "record.json").read_text())
    assert (document["format"], document["kind"]) == (FORMAT, record.kind)


def test_numpy_numbers_become_plain_ones_and_infinities_null() -> None:
    row = SpeedRow("a", True, "cpu", np.float32(0.5), float("inf"), float("nan"), "")  # type: ignore[arg-type]
    document = json.loads(SpeedReport("cpu", np.int64(2), "torch", (row,)).to_json())  # type: ignore[arg-type]
    assert document["threads"] == 2
    assert [document["layers"][0][name] for name in ("dense_s", "sparse_s", "gain")] == [0.5, None, None]


def test_a_number_that_is_not_finite_comes_back_as_nan() -> None:
    plan = MaskPlan("s", "s", "s", (), (PlannedLayer("a", Pattern("2:4"), (1,), 1, float("inf"), 0.0, 0.0),))
    assert np.isnan(MaskPlan.from_json(plan.to_json()).layers[0].kept_score)


GOOD = json.loads(RECORDS[4].to_json())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "speed: not a JSON document"),
        ("[]", "expected a record of kind 'speed', found 'list'"),
        (json.dumps({**GOOD, "kind": "plan"}), "expected a record of kind 'speed', found 'plan'"),
        (json.dumps({**GOOD, "format": FORMAT + 1}), "is newer than"),
        (json.dumps({**GOOD, "format": "1"}), "is newer than"),
        (json.dumps({**GOOD, "extra": 1}), "speed: unknown field 'extra'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "threads"}), "speed: field 'threads' is missing"),
        (json.dumps({**GOOD, "threads": "two"}), "speed.threads: expected int, found str"),
        (json.dumps({**GOOD, "threads": True}), "speed.threads: expected int, found bool"),
        (json.dumps({**GOOD, "layers": 3}), "speed.layers: expected a list, found int"),
        (json.dumps({**GOOD, "layers": [3]}), "speed.layers: expected an object, found int"),
    ],
)
def test_a_document_that_is_not_the_record_says_where(document: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeedReport.from_json(document)


def test_a_table_that_is_no_table_says_where() -> None:
    document = json.loads(RECORDS[5].to_json())
    with pytest.raises(ValueError, match=r"manifest\.files: expected an object, found list"):
        Manifest.from_json(json.dumps({**document, "files": []}))


def test_reading_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text("nothing")
    with pytest.raises(ValueError, match=r"speed\.json: speed: not a JSON document"):
        SpeedReport.read(tmp_path / "speed.json")


def test_an_inventory_says_which_layers_it_has() -> None:
    with pytest.raises(KeyError, match="no layer 'b'; the model has a"):
        RECORDS[0]["b"]  # type: ignore[index]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "deep" / "a.txt"
    with atomic(target) as temporary:
        temporary.write_text("first")

    def fail() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_arrays_keep_their_dtype_and_bfloat16_widens() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        assert to_numpy(np.ones(2, dtype), "W").dtype == dtype
    widened = to_numpy(np.array([1.5, -2.0], ml_dtypes.bfloat16), "W")
    assert (widened.dtype, widened.tolist()) == (np.float32, [1.5, -2.0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(3, int), "W: dtype int64 is not float16"),
        (np.ones(3), r"W: shape \(3,\) has 1 dimensions, wanted 2"),
        (np.ones((0, 3)), r"W: shape \(0, 3\) is empty"),
        (np.array([[1.0, np.nan]]), r"W: entry \(0, 1\) is nan"),
        (np.array([[np.inf]]), r"W: entry \(0, 0\) is inf"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_name(value: np.ndarray, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        to_numpy(value, "W", ndim=2)
