"""Every public name has an example in its docstring, and every example runs as it stands."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import autoprune as ap
from autoprune.envs import problem
from tests.helpers.detectors import build, write_data, write_detector
from tests.helpers.world import SIZE, WIDTH

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = (
    *(
        "autoprune.budget",
        "autoprune.choices",
        "autoprune.formats",
        "autoprune.criteria.registry",
        "autoprune.strategies.registry",
    ),
    *(f"autoprune.envs{name}" for name in ("", ".problem", ".pruning_env", ".observations", ".rules")),
)
PROBLEM = "the example in `PruningProblem`"
"""How an example names what it goes on with."""


def defined(module: ModuleType) -> dict[str, Any]:
    """Return the public classes and functions that a module defines itself."""
    return {
        name: found
        for name, found in vars(module).items()
        if (inspect.isclass(found) or inspect.isfunction(found))
        and not name.startswith("_")
        and found.__module__ == module.__name__
    }


NAMES: dict[str, Any] = {f"autoprune.{name}": getattr(ap, name) for name in ap.__all__}
for path in MODULES:
    NAMES |= {f"{path}.{name}": found for name, found in defined(importlib.import_module(path)).items()}


def examples(name: str) -> list[doctest.Example]:
    """Return the examples of a name, those of its methods behind its own."""
    found = NAMES[name]
    methods = [found] if not inspect.isclass(found) else [found, *vars(found).values()]
    texts = [inspect.getdoc(method) or "" for method in methods if callable(method)]
    return [example for text in texts for example in doctest.DocTestParser().get_examples(text)]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example(name: str) -> None:
    assert doctest.DocTestParser().get_examples(inspect.getdoc(NAMES[name]) or ""), f"{name} has no example"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """A folder with what examples name: ``best.pt``, a tiny detector, its ``data.yaml``, and a ``policy.json``."""
    folder = tmp_path_factory.mktemp("examples")
    write_detector(folder / "best.pt", build(WIDTH))
    written = write_data(folder / "data", images=16)
    described = {**yaml.safe_load(written.read_text()), "path": str(written.parent)}
    (folder / "data.yaml").write_text(yaml.safe_dump(described))
    net = ap.load(folder / "best.pt", data=folder / "data.yaml", imgsz=SIZE, device="cpu")
    net.policy([max(8, int(row["channels"]) // 2) for row in net.units], criterion="l1").save(folder / "policy.json")
    return folder


def run(name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Run the examples of a name, and return what they leave."""
    test = doctest.DocTest(examples(name), known, name, None, None, None)
    complaints: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(test, out=complaints.append, clear_globs=False)
    assert not complaints, "".join(complaints)
    return test.globs


@pytest.fixture
def at_home(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


SLOW = (
    "search",
    "load",
    "Network",
    "compare",
    "profile",
    "netadapt",
    "sensitivity",
    "quantize",
    "slim",
    "apply",
    "mask",
)
"""What takes seconds, and has a workflow test of its own that is not slow."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name.removeprefix("autoprune.") in SLOW)) for name in NAMES]
)
def test_every_example_runs(name: str, at_home: None, quick: None) -> None:
    """In a namespace with what its module knows, and ``ap``."""
    known = {**vars(inspect.getmodule(NAMES[name])), "ap": ap}  # type: ignore[arg-type]
    if PROBLEM in (inspect.getdoc(NAMES[name]) or ""):
        known["problem"] = run("autoprune.envs.problem.PruningProblem", {**vars(problem)})["problem"]
    run(name, known)
