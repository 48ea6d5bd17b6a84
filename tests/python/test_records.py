"""Records survive their own JSON, refuse what is not theirs, and files appear whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcore.html import one_line
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
    to_rows,
)
from mpcore.spectra import EdgeFit, fit_edge, fit_edges

PATTERNS = st.integers(2, 32).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m)))


@given(pair=PATTERNS)
def test_a_pattern_reads_the_same_as_text_pair_and_itself(pair: tuple[int, int]) -> None:
    pattern = Pattern(pair)
    assert Pattern(str(pattern)) == pattern == Pattern(pattern) == Pattern(list(pair))  # type: ignore[arg-type]
    assert pattern.density == pair[0] / pair[1]
    assert len({pattern, Pattern(pair)}) == 1


def test_a_pattern_takes_integers_of_numpy() -> None:
    pattern = Pattern((np.int64(2), np.uint8(4)))
    assert pattern == Pattern("2:4")
    assert (str(pattern), type(pattern.keep), type(pattern.group)) == ("2:4", int, int)


@pytest.mark.parametrize(
    "wrong", ["4:2", "2:2", "0:4", "2:33", "2-4", "", "a:b", (2,), (2.0, 4), 3, None, "2:4:8", (True, 4)]
)
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


def test_numpy_numbers_become_plain_ones_and_nan_null() -> None:
    row = SpeedRow("a", True, "cpu", np.float32(0.5), np.float32("inf"), float("nan"), "")  # type: ignore[arg-type]
    document = json.loads(SpeedReport("cpu", np.int64(2), "torch", (row,)).to_json())  # type: ignore[arg-type]
    assert document["threads"] == 2
    assert [document["layers"][0][name] for name in ("dense_s", "sparse_s", "gain")] == [0.5, "inf", None]


def strict(text: str) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_infinities_survive_a_round_trip_through_strict_json() -> None:
    inf = math.inf
    certificate = Certificate(1, "d", "m", 0, (inf,), (-inf,), (0.2,), 1, 1, 1, inf, -inf, None, None, (0.0, inf))
    assert strict(certificate.to_json())["margin"] == ["inf"]
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert Certificate.from_dict(certificate.to_dict()) == certificate
    fit = fit_edge(np.outer(np.arange(1.0, 9), np.ones(8)), return_values=True)
    assert fit.gof.anderson_darling == inf
    assert EdgeFit.from_json(fit.to_json()) == fit
    assert strict(fit.to_json())["gof"]["anderson_darling"] == "inf"


def test_older_files_with_null_for_infinity_are_read() -> None:
    plan = MaskPlan("s", "s", "s", (), (PlannedLayer("a", Pattern("2:4"), (1,), 1, math.inf, 0.0, 0.0),))
    old = plan.to_json().replace('"inf"', "null")
    assert math.isnan(MaskPlan.from_json(old).layers[0].kept_score)
    fit = fit_edge(np.outer(np.arange(1.0, 9), np.ones(8)))
    assert EdgeFit.from_json(fit.to_json().replace('"inf"', "null")).gof.anderson_darling is None


def test_only_numbers_are_read_from_the_words_for_infinity() -> None:
    named = LayerInventory((LayerInfo("inf", "linear", (2, 4), "mlp", True, False, "-inf"),), 8)
    assert LayerInventory.from_json(named.to_json()) == named
    with pytest.raises(ValueError, match="kept_score: expected float, found str"):
        MaskPlan.from_json(RECORDS[1].to_json().replace('"kept_score": 0.9', '"kept_score": "Infinity"'))


def test_tables_keep_infinities_as_numbers() -> None:
    report = SpeedReport("cpu", 2, "torch", (SpeedRow("a", True, "cpu", 1.0, math.inf, math.nan, ""),))
    assert [to_rows(report.layers)[0][name] for name in ("dense_s", "sparse_s", "gain")] == [1.0, math.inf, None]
    spectra = fit_edges({"a": np.outer(np.arange(1.0, 9), np.ones(8))})
    assert spectra.rows()[0]["gof_anderson_darling"] == math.inf


def test_a_record_prints_in_one_line_whatever_it_holds() -> None:
    rng = np.random.default_rng(0)
    fit = fit_edge(rng.standard_normal((300, 400)), return_values=True)
    assert fit.values is not None
    text = repr(fit)
    assert str(fit) == text
    assert text.startswith("EdgeFit(shape=(300, 400), p=300, n=400, gamma=0.75, sigma_sq=")
    assert f"gof=GoodnessOfFit(ks={fit.gof.ks:.6g}, " in text
    assert text.endswith(f"values=({fit.values[0]:.6g}, {fit.values[1]:.6g}, {fit.values[2]:.6g}, ... 300 in all))")
    many = tuple(rng.random(500).tolist())
    steps = tuple(LayerInfo(f"layer{i}", "linear", (2, 4), "mlp", True, False) for i in range(40))
    for record in (
        fit,
        Certificate(500, "d" * 64, "m" * 64, 0, many, many, many, 1, 1, 1, 0.1, None, None, None, None),
        LayerInventory(steps, 320),
        fit_edges({f"layer{i}": rng.standard_normal((8, 9)) for i in range(20)}),
        *RECORDS,
    ):
        line = repr(record)
        assert "\n" not in line
        assert len(line) < 1500
        for field in dataclasses.fields(record):
            assert f"{field.name}=" in line
    assert repr(LayerInventory(steps, 320)) == (
        "LayerInventory(layers=(LayerInfo(name='layer0', ...), LayerInfo(name='layer1', ...), "
        "LayerInfo(name='layer2', ...), ... 40 in all), parameters=320)"
    )
    assert repr(RECORDS[4]) == (
        "SpeedReport(machine='cpu', threads=2, baseline='torch', layers=(SpeedRow(layer='a', ...),), notes=())"
    )


def test_a_line_shows_arrays_by_shape_and_what_has_lines_of_its_own_by_type() -> None:
    @dataclasses.dataclass
    class Mixed:
        order: np.ndarray
        few: list[float]
        model: object
        by_name: dict[str, Pattern]
        _hidden: int = 0

    class Tall:
        def __repr__(self) -> str:
            return "one\ntwo"

    mixed = Mixed(np.arange(24).reshape(4, 6), [1 / 3, math.inf], Tall(), {str(i): Pattern("2:4") for i in range(9)})
    pattern = "Pattern(keep=2, group=4)"
    assert one_line(mixed) == (
        "Mixed(order=ndarray((4, 6), int64: 0, 1, 2, ... 24 in all), few=[0.333333, inf], model=<Tall>, "
        f"by_name={{'0': {pattern}, '1': {pattern}, '2': {pattern}, ... 9 in all}})"
    )


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bytes_of_the_other_order_are_turned_round(dtype: type) -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]], dtype)
    for order in "<>":
        found = to_numpy(values.astype(np.dtype(dtype).newbyteorder(order)), "W")
        assert (found.dtype, found.dtype.isnative) == (dtype, True)
        np.testing.assert_array_equal(found, values)


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


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match=rf"\] .*: '{tmp_path}/taken'$"), atomic(tmp_path / "taken") as temporary:
        temporary.write_text("x")
