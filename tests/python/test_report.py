"""report.html says what the records say, escapes all of it, loads nothing, and is the same bytes every time."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import seal, write_run

from mpcore.records import Certificate, EvalTable, LayerInventory, MaskPlan
from mpcore.report import render
from mpcore.report.charts import accuracy_chart, margin_chart, training_chart
from mpcore.report.spectrum import spectrum_chart
from mpcore.report.svg import linear, tag, ticks
from mpcore.report.text import count, interval, number, percent, with_interval
from mpcore.spectra import SpectraReport, fit_edge

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """Tags in order, checked to nest; texts; every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "run", spectra=True)


@pytest.fixture(scope="module")
def page(run: Path) -> Outline:
    return Outline(render(run).read_text(encoding="utf-8"))


def test_rendering_again_changes_nothing(run: Path) -> None:
    first = render(run).read_bytes()
    assert render(run).read_bytes() == first


def test_the_page_can_be_written_elsewhere(run: Path, tmp_path: Path) -> None:
    page = render(run, out=tmp_path / "deep" / "page.html")
    assert page.read_bytes() == render(run).read_bytes()


def test_the_page_loads_nothing_from_anywhere(page: Outline) -> None:
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert not [value for _, value in page.attributes if value and re.search(r"url\(|https?:", value)]


def test_the_headline_figures_are_the_records(run: Path, page: Outline) -> None:
    certificate, table = Certificate.read(run / "certificate-student.json"), EvalTable.read(run / "eval.json")
    distilled = next(row for row in table.rows if row.model == "distilled")
    assert percent(distilled.top1) in page.text
    assert f"{certificate.stable} of {certificate.samples} labels" in page.text
    assert "Weights kept 50.0 %" in page.text


def test_every_model_layer_group_and_spectrum_is_on_the_page(run: Path, page: Outline) -> None:
    plan, table = MaskPlan.read(run / "plan.json"), EvalTable.read(run / "eval.json")
    for row in table.rows:
        assert interval(row.top1_ci) in page.text
    for layer in plan.layers:
        assert page.words.count(layer.name) >= 2, "in the table and above its spectrum"
        assert f"Eigenvalues of {layer.name} with the Marchenko-Pastur density" in page.words
    assert "classifier head" in page.text
    assert "Gap to bound" in page.text
    assert "Distillation loss over training steps" in page.words


def test_a_layer_without_noise_is_drawn_without_a_law(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", spectra=True)
    spectra = SpectraReport.read(run / "spectra.json")
    first, second = list(spectra)[:2]
    halves = np.random.default_rng(0).standard_normal(30, np.float32)
    for W in (np.outer(np.arange(1.0, 31), np.ones(40)), np.outer(halves, halves)):
        flat = fit_edge(W, return_values=True)
        assert flat.sigma_sq == 0
        SpectraReport({**spectra, first: flat}, {}).write(run / "spectra.json")
        page = Outline(render(run).read_text(encoding="utf-8"))
        assert f"Eigenvalues of {first} without noise: there is no law to draw" in page.words
        assert f"Eigenvalues of {second} with the Marchenko-Pastur density" in page.words
        assert "nan" not in spectrum_chart(first, flat)
    assert spectrum_chart(second, spectra[second]).count('class="law"') == 1
    assert spectrum_chart(first, flat).count('class="law"') == 0
    assert spectrum_chart(first, flat).count('class="spike"') == 1


def test_every_tile_names_the_model_it_speaks_of(tmp_path: Path) -> None:
    """Distilled without an evaluation: the accuracy is the pruned model's, the certificate the student's."""
    run = write_run(tmp_path / "run")
    table = EvalTable.read(run / "eval.json")
    EvalTable(table.rows[:2], table.data).write(run / "eval.json")
    text = Outline(render(run).read_text(encoding="utf-8")).text
    for tile in (
        "Top-1, pruned",
        "Labels certified, student",
        "Worst squared output error, pruned",
        "The student model",
    ):
        assert tile in text
    text = Outline(render(write_run(tmp_path / "pruned", student=False)).read_text(encoding="utf-8")).text
    assert "Labels certified, pruned" in text
    assert "The pruned model beside the dense one" in text


def test_a_margin_without_bound_is_drawn_at_the_end(run: Path) -> None:
    certificate = Certificate.read(run / "certificate.json")
    endless = dataclasses.replace(certificate, margin=(math.inf, *certificate.margin[1:]))
    assert "nan" not in margin_chart(endless)


def test_a_run_without_evaluation_certificate_or_training_still_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", student=False)
    for name in ("certificate.json", "eval.json"):
        (run / name).unlink()
    seal(run)
    text = Outline(render(run).read_text(encoding="utf-8")).text
    assert "Not measured" in text
    assert "Labels certified" not in text


def test_unlabelled_evaluation_shows_agreement(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    table = EvalTable.read(run / "eval.json")
    rows = tuple(dataclasses.replace(row, top1=None, top1_ci=None, top5=None, nll=None) for row in table.rows)
    EvalTable(rows, "unlabelled").write(run / "eval.json")
    assert "Agreement, distilled" in Outline(render(run).read_text(encoding="utf-8")).text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\"&"
    run = write_run(tmp_path / "run")
    inventory = LayerInventory.read(run / "inventory.json")
    renamed = dataclasses.replace(inventory.layers[-1], name=hostile, reason=hostile)
    LayerInventory((*inventory.layers[:-1], renamed), inventory.parameters).write(run / "inventory.json")
    plan = MaskPlan.read(run / "plan.json")
    group = dataclasses.replace(plan.groups[0], consumers=(hostile,), producers=(hostile,))
    dataclasses.replace(plan, groups=(group,), score=hostile).write(run / "plan.json")
    table = EvalTable.read(run / "eval.json")
    EvalTable((dataclasses.replace(table.rows[0], model=hostile),), hostile).write(run / "eval.json")
    seal(run, recipe={hostile: hostile}, source={"timm": hostile}, versions={hostile: hostile})
    page = Outline(render(run).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert hostile in page.text


@pytest.mark.parametrize("missing", ["manifest.json", "plan.json"])
def test_an_unfinished_run_has_no_page(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no finished run \\({missing} is missing\\)"):
        render(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["plan.json", "certificate.json", "eval.json", "spectra.json"])
def test_a_corrupt_record_is_named_and_no_page_is_left(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", spectra=True)
    (run / name).write_text("{")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        render(run)
    assert not (run / "report.html").exists()


def test_a_corrupt_training_log_names_its_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "train.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl: line 2 holds no step and loss"):
        render(run)


def test_samples_above_the_diagonal_are_exactly_the_certified_ones(run: Path) -> None:
    certificate = Certificate.read(run / "certificate.json")
    chart = margin_chart(certificate)
    assert chart.count("sample stable") == certificate.stable
    assert chart.count("sample open") == certificate.samples - certificate.stable


def test_charts_of_nothing_are_empty_and_charts_of_one_point_are_not() -> None:
    assert accuracy_chart([]) == training_chart([]) == ""
    assert "polyline" in training_chart([(0, 1.0)])


def test_a_long_training_log_is_thinned_without_moving_its_mean() -> None:
    points = [(step, float(step % 7)) for step in range(5000)]
    curve = re.search(r'points="([^"]+)"', training_chart(points))
    assert curve is not None
    assert len(curve[1].split()) <= 240


def test_ticks_are_round_numbers_inside_their_range() -> None:
    for low, high in [(0.0, 1.0), (0.853, 0.971), (-3.0, 17.5), (1e-7, 9e-7), (5.0, 5.0)]:
        marks = ticks(low, high)
        assert marks
        assert all(low - 1e-12 <= mark <= high + 1e-12 for mark in marks)
        assert len(marks) <= 12
    assert ticks(0, 2e-13) == pytest.approx([0, 5e-14, 1e-13, 1.5e-13, 2e-13], rel=1e-9, abs=0)
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_scale_maps_ends_to_ends_and_a_point_to_the_middle() -> None:
    assert [linear((2, 4), (10, 30))(value) for value in (2, 3, 4)] == [10, 20, 30]
    assert linear((2, 2), (10, 30))(2) == 20


def test_attributes_and_contents_are_escaped() -> None:
    assert tag("text", "<b>", class_='a"b', stroke_width=1) == (
        '<text class="a&#34;b" stroke-width="1.00">&lt;b&gt;</text>'
    )


def test_numbers_read_as_people_write_them() -> None:
    assert [number(None), number(0.0123456), number(1234.0, 4)] == ["–", "0.0123", "1234"]
    assert [percent(None), percent(0.12345), percent(0.5, 0)] == ["–", "12.35 %", "50 %"]
    assert with_interval(0.5, (0.4, 0.6)) == "50.00 % (40.0 to 60.0)"
    assert with_interval(0.5, None) == "50.00 %"
    assert interval(None) == "–"
    assert count(1234567) == "1\u2009234\u2009567"
    assert number(float(np.float32(2.5))) == "2.5"


def test_a_spectrum_is_drawn_alike_at_any_scale() -> None:
    W = np.random.default_rng(0).standard_normal((60, 100))
    bars = [spectrum_chart("W", fit_edge(W * size, return_values=True)).count("bulk-bar") for size in (1.0, 1e-7, 1e9)]
    assert bars[0] == bars[1] == bars[2] > 5
