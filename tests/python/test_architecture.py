"""Section 3 of docs/architecture.md, enforced: who may import whom, what stays light, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "mpcore"

LAYERS: dict[int, set[str]] = {
    1: {"_native"},
    2: {
        "pattern",
        "arrays",
        "html",
        "serialise",
        "records",
        "reference",
        "checkpoint",
        "folder",
        "progress",
        "engine",
        "roles",
        "pretrained",
    },
    3: {"spectra", "masks", "permute", "compensate", "sparse", "certify"},
    4: {"budget", "verify"},
    5: {"models", "gpu"},
    6: {"pipeline", "prunerun", "recovery", "report", "stream"},
    7: {"cli", "demo"},
}
MAY_IMPORT: dict[int, set[str]] = {
    2: LAYERS[2],
    3: LAYERS[1] | LAYERS[2],
    4: LAYERS[2],
    5: LAYERS[2] | LAYERS[3] | LAYERS[4] | {"gpu", "_native"},
    6: set().union(*(LAYERS[k] for k in range(1, 7))),
    7: set().union(*(LAYERS[k] for k in range(1, 8))) | {"public names"},
}
"""Besides a module's own sub-modules. Within layers 3 and 4 nothing imports its neighbours, and gpu not models."""

PACKAGES: dict[str, set[str]] = {
    "progress": {"rich"},
    "spectra": {"matplotlib"},
    "models": {
        "torch",
        "timm",
        "torchvision",
        "PIL",
        "onnx",
        "onnxruntime",
        "accelerate",
        "transformers",
        "pyarrow",
        "google",
    },
    "gpu": {"torch"},
    "engine": {"ray"},
    "pipeline": {"torch"},
    "prunerun": {"torch"},
    "recovery": {"torch"},
    "report": {"jinja2", "markupsafe"},
    "cli": {"typer", "rich", "torch"},
    "demo": {"torch", "timm", "sklearn", "rich"},
}
"""What a module may import beyond the standard library, NumPy and safetensors."""

FILES = sorted(PACKAGE.rglob("*.py"))
RUST = sorted((ROOT / "rust").rglob("*.rs"))


def module_of(path: Path) -> str:
    """``mpcore.cli.app`` -> its first part below mpcore, ``cli``; empty for mpcore itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").removesuffix("__init__")


def layer_of(module: str) -> int:
    return next(layer for layer, modules in LAYERS.items() if module in modules)


def below_mpcore(imported: str) -> str:
    """``mpcore.models.apply`` -> ``models``; "public names" for ``from mpcore import prune`` and ``import mpcore``."""
    parts = imported.split(".")
    known = set().union(*LAYERS.values())
    return parts[1] if len(parts) > 1 and parts[1] in known else "public names"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in a file; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_module_has_a_layer_and_imports_only_what_lies_below(path: Path) -> None:
    module = module_of(path)
    if not module:
        return
    allowed = MAY_IMPORT[layer_of(module)] | {module}
    wrong = [
        f"{name(path)}:{line}: {module} may not import {imported}"
        for line, imported in imports(path)
        if imported.split(".")[0] == "mpcore" and below_mpcore(imported) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_module_imports_only_the_packages_of_its_layer(path: Path) -> None:
    allowed = (
        sys.stdlib_module_names | {"mpcore", "numpy", "safetensors", "tomli"} | PACKAGES.get(module_of(path), set())
    )
    wrong = [f"{name(path)}:{line}: {found}" for line, found in imports(path) if found.split(".")[0] not in allowed]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [*FILES, *RUST], ids=name)
def test_no_source_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", RUST, ids=name)
def test_faer_is_named_in_one_file_and_the_core_knows_nothing_of_python(path: Path) -> None:
    code = [line.split("//")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    if path != ROOT / "rust" / "core" / "src" / "linalg" / "dense.rs":
        assert not [line for line in code if "faer::" in line or "use faer" in line]
    if (ROOT / "rust" / "core") in path.parents:
        assert not [line for line in code if "pyo3" in line or "numpy::" in line]


@pytest.mark.parametrize("statement", ["import mpcore", "import mpcore.cli", "from mpcore.verify import verify"])
def test_heavy_packages_are_not_loaded_by(statement: str) -> None:
    heavy = {
        "torch",
        "timm",
        "torchvision",
        "matplotlib",
        "jinja2",
        "sklearn",
        "scipy",
        "ray",
        "accelerate",
        "rich.console",
    }
    program = f"import sys; {statement}; print(*[name for name in {sorted(heavy)!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_module_and_function_has_a_docstring() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), name(path)
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not _private_or_overload(node):
                assert ast.get_docstring(node), f"{name(path)}: {node.name}"


def _private_or_overload(node: ast.FunctionDef | ast.ClassDef) -> bool:
    overload = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)
    return overload or node.name.startswith("_")
