"""Every recipe in configs/ is complete and current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autoprune.cli.arguments import parse
from autoprune.cli.main import main
from autoprune.config import BudgetedConfig, PruningConfig
from tests.helpers.world import arguments

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))

SMALL = {
    "search": ("--episodes", "6", "--finalists", "1", "--finetune-epochs", "0"),
    "netadapt": ("--initial-step", "0.2", "--short-term-steps", "1", "--finetune-epochs", "0"),
    "sensitivity": (),
    "compare": ("--criteria", "l1,taylor", "--finetune-epochs", "0"),
    "slim": ("--sparsity-epochs", "1", "--episodes", "6", "--finalists", "1", "--finetune-epochs", "1"),
}
"""What makes a recipe a matter of seconds, by command; the budget too, which the tiny detector has its own of."""


def command_of(path: Path) -> str:
    """Return the command that a recipe says it is for, in its line to copy."""
    found = re.search(rf"^#   autoprune (\w+) --config configs/{re.escape(path.name)} ", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path.name} has no line to copy"
    return found[1]


def from_nothing(path: Path) -> bool:
    """Return whether a recipe trains its network itself."""
    return "architecture:" in path.read_text()


def network_of(path: Path, weights: str) -> list[str]:
    """Return the options that point a recipe at another network."""
    if from_nothing(path):
        return ["--architecture", "yolov5n.yaml", "--train-epochs", "1"]
    return ["--model", weights]


def test_there_are_recipes() -> None:
    assert {"search-flops50.yaml", "search-latency60.yaml", "amc-ddpg.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_read_and_can_be_pointed_at_another_model(path: Path) -> None:
    command = command_of(path)
    needed = ("--data", "data.yaml") if from_nothing(path) else ()
    config = parse([command, "--config", str(path), *needed])[1]
    argv = [command, "--config", str(path), *network_of(path, "best.pt"), "--data", "data.yaml"]
    own = parse(argv)[1]
    assert isinstance(config, PruningConfig)
    assert isinstance(own, PruningConfig)
    assert own.data == Path("data.yaml")
    assert own.model == (None if from_nothing(path) else Path("best.pt"))
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
    if from_nothing(path):
        at = options.index("--model")
        options[at : at + 2] = network_of(path, options[at + 1])
    assert main([first, "--config", str(path), *options]) in (0, 3)  # 3: what takes seconds may be too wide
