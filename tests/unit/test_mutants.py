"""Do the tests notice when the code is wrong? Small changes of core modules, each of which must fail a test.

They decide which channels go (``space``), whether a budget is held and read right (``constraint``, ``budget``),
where a search starts and which candidate ships (``prior``, ``finalists``), that a run can be repeated
(``isolation``), what weights make up for, what a score is and what is cut (``evaluator``, ``slicing``, ``statistics``);
all have tests of seconds. A runner of its own: mutmut leaves out whatever
is decorated, here the dataclasses, properties and context managers that much of these modules is made of.

``AUTOPRUNE_MUTANTS=60 pytest -m slow tests/unit/test_mutants.py`` tries more of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import VARIABLE, mutants, sample

TESTS = {
    "autoprune.structure.space": ["test_space"],
    "autoprune.structure.constraint": ["test_space", "test_constraint"],
    "autoprune.budget": ["test_budget"],
    "autoprune.structure.slicing": ["test_slicing"],
    "autoprune.statistics.layers": ["test_statistics"],
    "autoprune.statistics.moments": ["test_statistics"],
    "autoprune.statistics.sampling": ["test_statistics"],
    "autoprune.evaluation.evaluator": ["test_evaluator"],
    "autoprune.strategies.prior": ["test_prior"],
    "autoprune.workflows.finalists": ["test_finalists"],
    "autoprune.strategies.isolation": ["test_isolation"],
    "autoprune.strategies.regrowth": ["test_regrowth"],
    "autoprune.evaluation.slopes": ["test_slopes"],
    "autoprune.criteria.covariance": ["test_covariance"],
    "autoprune.evaluation.compensation": ["test_compensation", "test_folding"],
    "autoprune.evaluation.reconstruction": ["test_reconstruction", "test_pruning"],
}
"""Modules, and the tests that belong to them."""

EQUIVALENT: dict[str, dict[str, str]] = {
    "autoprune.evaluation.slopes": {
        "_rows: -1 → 1 (3)": "a linear layer whose channels can be pruned reads two dimensions"
    },
    "autoprune.strategies.regrowth": {
        "_Growth.onto_budget: 0.001 * self.worth.argsort().argsort() / len(counts) → "
        "0.001 * self.worth.argsort().argsort() * len(counts)": "of the ranks only the order counts"
    },
    "autoprune.workflows.finalists": {
        "choose: break → continue": "the first of the loop; what would follow is the same condition again"
    },
    "autoprune.structure.constraint": {
        "Constraint.project: target_log_ratios + low → target_log_ratios - low (2)": "only the units' order counts"
    },
    "autoprune.structure.space": {
        "Space.round_down: 'right' → 'left'": "no ratio times a width, and a bit more, is a whole number"
    },
}
"""Mutants that no test can tell from the module, with the reason."""


def survives(module: str, mutant: str, root: Path) -> bool:
    """Return whether all tests of a module pass with a mutant in its place."""
    tests = [str(next((root / "tests").rglob(f"{name}.py"))) for name in TESTS[module]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "tests.mutation.plugin", "--hypothesis-seed=0", *tests]
    environment = {**os.environ, VARIABLE: f"{module}|{mutant}", "PYTHONPATH": str(root)}
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return False  # it goes round in circles, which nobody overlooks
    assert done.returncode in (0, 1, 2), f"pytest left with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("module", TESTS)
def test_mutants_are_noticed(module: str, root: Path) -> None:
    source = (root / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    drawn = [mutant.name for mutant in sample(source, int(os.environ.get("AUTOPRUNE_MUTANTS", "12")))]
    survivors = [name for name in drawn if name not in EQUIVALENT.get(module, {}) and survives(module, name, root)]
    assert not survivors, f"{len(survivors)} of {len(drawn)} changes of {module} fail no test:\n" + "\n".join(survivors)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(a):\n    return a < 1", ["f: a < 1 → a <= 1", "f: 1 → 2"]),
        ("x = a[2:]", [": 2: → :2", ": 2 → 3"]),
        (
            "class C:\n    @cached\n    def f(a: int = 0) -> None:\n        '''Do.'''\n        go(a)",
            ["C.f: 0 → 1", "C.f: go(a) → pass"],
        ),
        ("if not a:\n    raise E(f'{1}')", [": if not a: → if not not a:", ": not a → a"]),
        (
            "min(-a, b + b + b)",
            [": min(-a, b + b + b) → pass", ": min → max", ": -a → a", ": b + b + b → b + b - b", ": b + b → b - b"],
        ),
    ],
)
def test_changes_are_small_and_named(source: str, names: list[str]) -> None:
    assert [mutant.name for mutant in mutants(source)] == names
    for mutant in mutants(source):
        compile(mutant.of(source), "mutant", "exec")


def test_the_sample_stays_where_a_module_grows() -> None:
    source = "\n".join(f"def f{number}(a):\n    return a + {number}" for number in range(30))
    before = {mutant.name for mutant in sample(source, 20)}
    after = {mutant.name for mutant in sample(source + "\ndef g(a):\n    return a * 2", 20)}
    assert len(before & after) >= 18
