"""The documentation is true: its code runs and prints what it shows, its commands exist, its extras are real."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import matplotlib
import pages
import pytest
import typer
from test_cli import run as command

from mpcore.cli.app import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WITH_PYTHON = [page for page in pages.pages() if any(block.language == "python" for block in pages.blocks(page))]
COMMANDS = [(page, line, text) for page in pages.pages() for line, text in pages.commands(page)]
GROUP = typer.main.get_command(app)


def name(value: object) -> str:
    return str(value.relative_to(pages.ROOT)) if isinstance(value, Path) else str(value)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


@pytest.fixture(autouse=True)
def no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_the_python_of_a_page_runs_and_prints_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    for line, printed, promised in pages.run(page, tmp_path):
        assert lines(printed) == lines(promised), f"{name(page)}:{line}"
    for picture in tmp_path.glob("*.png"):
        assert (pages.DOCS / "images" / picture.name).exists(), "make pictures"


def test_most_pages_have_python_that_runs() -> None:
    found = {page.stem for page in WITH_PYTHON}
    assert {"README", "index", "tour", "noise", "prune", "cpu", "certificates", "coming-from"} <= found


@pytest.mark.parametrize(
    ("page", "line", "text"), [entry for entry in COMMANDS if entry[2].startswith("mpcore ")], ids=name
)
def test_a_command_of_the_documentation_exists_with_its_options(page: Path, line: int, text: str) -> None:
    name_of, *arguments = shlex.split(text)[1:]
    assert name_of in GROUP.commands, f"{name(page)}:{line}: no command {name_of}"  # type: ignore[attr-defined]
    GROUP.commands[name_of].make_context(name_of, arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("page", "line", "text"), [entry for entry in COMMANDS if not entry[2].startswith("mpcore ")], ids=name
)
def test_a_target_or_program_of_the_documentation_exists(page: Path, line: int, text: str) -> None:
    targets = re.findall(r"^([a-z]+):", (pages.ROOT / "Makefile").read_text(), re.MULTILINE)
    if found := re.match(r"make ([a-z]+)", text):
        assert found[1] in targets, f"{name(page)}:{line}"
    for program in re.findall(r"python ((?:examples|benches|tests)/\S+\.py)", text):
        assert (pages.ROOT / program).exists(), f"{name(page)}:{line}"


def test_the_commands_of_the_tour_run_on_what_its_python_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tour = pages.DOCS / "tour.md"
    pages.run(tour, tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = [text for _, text in pages.commands(tour)]
    assert len(ran) == 3
    for text in ran:
        result = command(*shlex.split(text)[1:])
        assert result.exit_code == 0, (text, result.stderr)
    assert command("doctor").exit_code == 0


@pytest.mark.parametrize("page", [pages.ROOT / "README.md", pages.DOCS / "index.md"], ids=name)
def test_the_install_table_names_the_extras_of_the_project(page: Path) -> None:
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    shown = set(re.findall(r"`mpcore\[([a-z,]+)\]`", page.read_text(encoding="utf-8")))
    named = {extra for entry in shown for extra in entry.split(",")}
    assert named <= set(extras)
    assert named >= set(extras) - ({"dev", "docs"} if page.name == "README.md" else set())
    rows = re.findall(r"\| `mpcore(?:\[([a-z,]+)\])?` \| ([^|]+) \|", page.read_text(encoding="utf-8"))
    for extra, adds in rows:
        last = extra.split(",")[-1]
        wanted = extras[last] if last else project["dependencies"]
        known = {re.split(r"[\[<>=;~ ]", entry)[0] for entry in wanted}
        if last not in ("dev", "docs"):
            assert {word.strip() for word in adds.split(",")} == known - {"tomli"}, extra


@pytest.mark.parametrize("page", pages.pages(), ids=name)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{name(page)}: {target}"
