"""The import order of the design, and what importing the package costs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "ultralytics", "stable_baselines3", "gymnasium", "tensorboard", "torchvision")


def test_imports_go_from_top_to_bottom_only(root: Path) -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_its_place_in_the_order(root: Path) -> None:
    contract = (root / "pyproject.toml").read_text().partition("[[tool.importlinter.contracts]]")[2]
    placed = set(re.findall(r"autoprune\.(\w+)", contract))
    here = {
        path.stem for path in (root / "autoprune").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert here - {"__init__"} <= placed


@pytest.mark.parametrize("module", ["autoprune", "autoprune.cli.main", "autoprune.policy", "autoprune.journal"])
def test_importing_is_light(root: Path, module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
