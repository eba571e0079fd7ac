"""What is imported is declared in pyproject.toml, and what is declared there is imported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="pyproject.toml is read by Python 3.11 and later")

OWN = {"autoprune", "tests"}
PACKAGES = {
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "cv2": "opencv-python",
    "made_up_package": None,
    "mlflow": "mlflow-skinny",
    "torch.utils.tensorboard": "tensorboard",
    "thop": "ultralytics-thop",
    "vl_convert": "vl-convert-python",
    "yaml": "pyyaml",
}
"""What brings a module, where that has another name."""
PROGRAMS = {"pnnx"}
"""Packages that bring a program, which is started and not imported."""

TOOLS = {
    "pytest",
    "pytest-benchmark",
    "pytest-xdist",
    "ruff",
    "mypy",
    "import-linter",
    "setuptools",
    "ipykernel",
    "sb3-contrib",
}
"""What the `test` extra has to be run, not to be imported."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: Iterable[str]) -> set[str]:
    """Return the names of distributions in a list of requirements."""
    return {canonical(found[0]) for text in requirements if (found := re.match(r"[\w.-]+", text))}


@pytest.fixture(scope="module")
def project(root: Path) -> Mapping[str, Any]:
    return dict(tomllib.loads((root / "pyproject.toml").read_text())["project"])


@pytest.fixture(scope="module")
def extras(project: Mapping[str, Any]) -> set[str]:
    used = {name: texts for name, texts in project["optional-dependencies"].items() if name not in ("test", "docs")}
    return named(text for texts in used.values() for text in texts) - {"autoprune"}


@cache
def imports(file: Path) -> list[tuple[str, bool]]:
    """Return every module that a file imports, and whether it does so when it is imported itself."""
    return list(_imports(ast.parse(file.read_text()), at_once=True))


def _imports(block: ast.AST, *, at_once: bool) -> Iterator[tuple[str, bool]]:
    for node in ast.iter_child_nodes(block):
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module), at_once
        elif isinstance(node, (ast.stmt, ast.excepthandler)):
            late = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_for_types(node)
            yield from _imports(node, at_once=at_once and not late)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def package(module: str) -> str | None:
    """Return the package that brings a module; None for Python's own and ours."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in OWN:
        return None
    return PACKAGES.get(module, PACKAGES.get(top, canonical(top)))


def undeclared(files: Iterable[Path], declared: set[str], *, at_once: bool = False) -> list[str]:
    """Return the imports that no declared distribution brings, each with its file; only those ``at_once`` if asked."""
    return [
        f"{file}: {module}"
        for file in files
        for module, now in imports(file)
        if (now or not at_once) and package(module) not in {*declared, None}
    ]


def sources(root: Path, *folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((root / folder).rglob("*.py"))]


def test_what_is_imported_is_declared(root: Path, project: Mapping[str, Any], extras: set[str]) -> None:
    core = named(project["dependencies"])
    assert undeclared(sources(root, "autoprune", "envs"), core | extras) == []


def test_extras_are_imported_where_they_are_needed_only(root: Path, project: Mapping[str, Any]) -> None:
    engines = root / "autoprune" / "runtimes" / "engines"  # each runs in a process of its own
    files = [file for file in sources(root, "autoprune", "envs") if not file.is_relative_to(engines)]
    assert undeclared(files, named(project["dependencies"]), at_once=True) == []


def test_what_tests_import_is_declared(root: Path, project: Mapping[str, Any], extras: set[str]) -> None:
    declared = named(project["dependencies"]) | named(project["optional-dependencies"]["test"]) | extras
    assert undeclared(sources(root, "tests", ".ci"), declared) == []


def test_what_is_declared_is_imported(root: Path, project: Mapping[str, Any], extras: set[str]) -> None:
    used = {package(module) for file in sources(root, "autoprune", "envs") for module, _ in imports(file)}
    assert named(project["dependencies"]) | extras - PROGRAMS <= used
    in_tests = {package(module) for file in sources(root, "tests", ".ci") for module, _ in imports(file)}
    assert named(project["optional-dependencies"]["test"]) - TOOLS - {"autoprune"} <= in_tests


def test_an_undeclared_import_is_found(tmp_path: Path) -> None:
    file = tmp_path / "new.py"
    file.write_text("import os\nimport yaml.nodes\nfrom PIL import Image\n\n\ndef late():\n    import psutil\n")
    assert undeclared([file], {"pillow"}) == [f"{file}: yaml.nodes", f"{file}: psutil"]
    assert undeclared([file], {"pillow"}, at_once=True) == [f"{file}: yaml.nodes"]


def test_every_dependency_says_who_uses_it_and_has_one_floor(root: Path, project: Mapping[str, Any]) -> None:
    lines = (root / "pyproject.toml").read_text().splitlines()
    lists = {name: texts for name, texts in project["optional-dependencies"].items() if name != "test"}
    for text in [*project["dependencies"], *(text for texts in lists.values() for text in texts)]:
        if not text.startswith("autoprune["):
            assert re.fullmatch(r"[\w-]+>=[\d.]+", text), text
            assert all("# " in line for line in lines if f'"{text}"' in line), text
