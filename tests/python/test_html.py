"""Records in notebooks: tables that hold what the record says, and rows that pandas and polars take."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
import torch
from torch import nn

import mpcore
from mpcore import html
from mpcore.models.distill import DistillRun
from mpcore.prunerun import PruneRun
from mpcore.records import EvalTable

VOID = {"path", "rect", "use", "br"}


class Balanced(HTMLParser):
    """Collects text, and fails on an end tag that closes nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def shown(value: Any) -> str:
    return " ".join(Balanced(value._repr_html_()).words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruneRun, DistillRun]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    batches = [(torch.randn(32, 16), torch.randint(3, (32,))) for _ in range(2)]
    folder = tmp_path_factory.mktemp("html") / "run"
    run = mpcore.prune(net, "fast", calibration=batches, evaluation=batches, out=folder, progress=False)
    return run, mpcore.distill(run, batches, evaluation=batches, epochs=1, progress=False)


def test_a_fit_shows_its_figures_and_its_plot_where_it_holds_values() -> None:
    W = np.random.default_rng(0).standard_normal((64, 128))
    assert "<svg" not in mpcore.fit_edge(W)._repr_html_()
    fit = mpcore.fit_edge(W, return_values=True)
    text = fit._repr_html_()
    assert text.count("<svg") == text.count("</svg>") == 1
    assert text == mpcore.fit_edge(W, return_values=True)._repr_html_()
    words = shown(fit)
    assert "accepted" in words
    assert f"{fit.edge:.4g}" in words


def test_without_matplotlib_a_fit_shows_its_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = mpcore.fit_edge(np.random.default_rng(0).standard_normal((64, 128)), return_values=True)
    monkeypatch.delitem(__import__("sys").modules, "mpcore.spectra.plot", raising=False)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert "<svg" not in fit._repr_html_()
    assert "accepted" in shown(fit)


def test_a_spectra_report_is_a_table_of_its_layers() -> None:
    rng = np.random.default_rng(0)
    report = mpcore.fit_edges(
        {"<a>": rng.standard_normal((32, 64)), "b": rng.standard_normal((32, 64)), "c": np.ones(3)}
    )
    words = shown(report)
    assert "<a>" in words
    assert "c: 1 dimension" in words
    assert report._repr_html_().count("<tr>") == 1 + 1 + 2


def test_a_permutation_shows_its_efficacy_and_no_endless_order() -> None:
    found = mpcore.optimize_permutation(np.random.default_rng(0).random((8, 64)), "2:4", max_rounds=5)
    words = shown(found)
    assert f"{found.efficacy:.4g}" in words
    assert "64 values, 0 to 63" in words


def test_a_run_shows_its_layers_its_certificate_and_its_evaluation(runs: tuple[PruneRun, DistillRun]) -> None:
    run, student = runs
    certificate = run.report.certificate
    words = shown(run)
    assert f"{certificate.stable} of {certificate.samples} labels cannot have changed" in words
    assert "relative_error" in words
    assert "pruned" in words
    assert "32 values" in shown(certificate)
    assert "distilled" in shown(student)
    assert "loss" in shown(student)


def test_an_accelerated_model_shows_its_table() -> None:
    net = nn.Sequential(nn.Linear(8, 8))
    assert "no N:M pattern" in shown(mpcore.accelerate(net, torch.randn(2, 8)))


def test_every_report_gives_rows_that_pandas_and_polars_take(runs: tuple[PruneRun, DistillRun]) -> None:
    run, student = runs
    report, speed = run.report, mpcore.accelerate(run.model, torch.randn(4, 16)).report
    for source in (
        report.inventory,
        report.spectra,
        report.budget,
        report.plan,
        report.certificate,
        student.history,
        speed,
    ):
        rows = source.rows()
        assert len(rows) > 0
        assert list(pandas.DataFrame(rows).columns) == list(rows[0])
        assert polars.DataFrame(rows).height == len(rows)
    assert set(pandas.DataFrame(report.plan.rows())["pattern"]) == {"2:4"}
    table = EvalTable.read(Path(student.folder) / "eval.json")
    assert list(pandas.DataFrame([row.to_dict() for row in table.rows])["model"]) == ["dense", "pruned", "distilled"]
    assert "top1_ci_low" in mpcore.records.to_rows(table.rows)[0]


def test_a_long_table_says_how_much_it_leaves_out() -> None:
    text = html.table([{"n": n} for n in range(html.LONGEST + 7)])
    assert "and 7 more" in text
    assert text.count("<tr>") == 1 + html.LONGEST
