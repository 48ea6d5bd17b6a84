"""What a release consists of agrees with itself: lock file, licences, bill of materials, workflows, changelog."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LOCK = tomllib.loads((ROOT / "Cargo.lock").read_text(encoding="utf-8"))
CRATES = {(entry["name"], entry["version"]): entry for entry in LOCK["package"]}
BILL = json.loads((ROOT / "release" / "mpcore.cyclonedx.json").read_text(encoding="utf-8"))
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def table() -> dict[tuple[str, str], str]:
    """(crate, version) -> licence, of THIRD-PARTY.md."""
    text = (ROOT / "THIRD-PARTY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| ([^|]+) \|", text, re.MULTILINE)
    return {(name, version): licence for name, version, licence in rows}


def steps(path: Path) -> list[dict[str, Any]]:
    """All steps of a workflow."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_the_licence_list_and_the_bill_of_materials_name_the_same_crates_of_the_lock_file() -> None:
    billed = {(entry["name"], entry["version"]) for entry in BILL["components"]}
    assert billed == set(table())
    assert billed <= set(CRATES), "make licences sbom"
    assert {"faer", "pyo3", "numpy", "rayon"} <= {name for name, _ in billed}
    assert not {"proptest", "mpcore-core", "pyo3-macros"} & {name for name, _ in billed}


def test_the_bill_of_materials_has_the_checksums_of_the_lock_file_and_is_closed() -> None:
    for entry in BILL["components"]:
        assert entry["hashes"][0]["content"] == CRATES[entry["name"], entry["version"]]["checksum"]
    references = {entry["bom-ref"] for entry in BILL["components"]} | {BILL["metadata"]["component"]["bom-ref"]}
    assert {edge["ref"] for edge in BILL["dependencies"]} == references
    assert all(set(edge["dependsOn"]) <= references for edge in BILL["dependencies"])
    assert BILL["metadata"]["component"]["version"] == VERSION


def test_every_licence_is_allowed_by_deny_toml() -> None:
    program = (
        "import sys, tomllib; sys.path.insert(0, 'release'); from licences import satisfied;"
        "allowed = set(tomllib.load(open('deny.toml', 'rb'))['licenses']['allow']);"
        "print([line for line in sys.stdin.read().splitlines() if not satisfied(line, allowed)],"
        "satisfied('GPL-3.0', allowed), satisfied('GPL-3.0 OR MIT', allowed), satisfied('MIT AND (GPL-3.0)', allowed))"
    ).replace("tomllib", tomllib.__name__)
    given = "\n".join(set(table().values()))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, input=given, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[] False True False", done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_uses_no_secret_and_only_targets_and_files_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "secrets." not in text
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for step in steps(path):
        assert ("run" in step) != ("uses" in step)
        for target in re.findall(r"\bmake ([a-z]+)", step.get("run", "")):
            assert target in targets
        for program in re.findall(r"\b(?:tests|release)/\w+\.py", step.get("run", "")):
            assert (ROOT / program).exists()


def test_wheels_are_built_for_every_platform_that_is_promised_and_published_without_a_token() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8"))
    jobs = workflow["jobs"]
    built = {entry["name"] for entry in jobs["wheel"]["strategy"]["matrix"]["include"]}
    assert built == {"linux-x86_64", "linux-aarch64", "macos-x86_64", "macos-arm64", "windows-x86_64"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert set(jobs["publish"]["needs"]) == {"wheel", "sdist"}
    assert "refs/tags/v" in jobs["publish"]["if"]


def test_the_changelog_has_an_entry_for_the_next_release() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(f"{VERSION} ")
