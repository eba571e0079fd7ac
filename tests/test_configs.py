"""Every recipe in configs/ is complete and current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autoprune.arguments import load, parse
from autoprune.cli import main
from autoprune.config import BudgetedConfig, PruningConfig
from tests.world import arguments

RECIPES = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))

SMALL = {
    "search": ("--episodes", "6", "--finalists", "1", "--finetune-epochs", "0"),
    "netadapt": ("--initial-step", "0.2", "--short-term-steps", "1", "--finetune-epochs", "0"),
    "sensitivity": (),
    "compare": ("--criteria", "l1,taylor", "--finetune-epochs", "0"),
}
"""What makes a recipe a matter of seconds, by command; the budget too, which the tiny detector has its own of."""


def command_of(path: Path) -> str:
    """Return the command that a recipe says it is for, in its line to copy."""
    found = re.search(rf"^#   autoprune (\w+) --config configs/{re.escape(path.name)} ", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path.name} has no line to copy"
    return found[1]


def test_there_are_recipes() -> None:
    assert {"search-flops50.yaml", "search-latency60.yaml", "amc-ddpg.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_read_and_can_be_pointed_at_another_model(path: Path) -> None:
    command = command_of(path)
    config = load(command, path)
    argv = [command, "--config", str(path), "--model", "best.pt", "--data", "data.yaml"]
    own = parse(argv)[1]
    assert isinstance(config, PruningConfig)
    assert isinstance(own, PruningConfig)
    assert (own.model, own.data) == (Path("best.pt"), Path("data.yaml"))
    if isinstance(config, BudgetedConfig):
        assert isinstance(own, BudgetedConfig)
        assert own.budget == config.budget


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.name != "search-openvino60.yaml"], ids=lambda path: path.name
)
def test_a_recipe_runs(path: Path, tiny: Path, quick: None, tmp_path: Path) -> None:
    command = command_of(path)
    first, *options = arguments(command, tiny, tmp_path / "run", *SMALL[command])
    assert main([first, "--config", str(path), *options]) == 0
