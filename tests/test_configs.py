"""Every recipe in configs/ is complete and current."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.arguments import load, parse
from autoprune.config import SearchConfig

RECIPES = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {"search-flops50.yaml", "search-latency60.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_read_and_can_be_pointed_at_another_model(path: Path) -> None:
    command = path.name.split("-")[0]
    config = load(command, path)
    assert f"autoprune {command} --config configs/{path.name}" in path.read_text()
    assert isinstance(config, SearchConfig)
    argv = [command, "--config", str(path), "--model", "best.pt", "--data", "data.yaml"]
    own = parse(argv)[1]
    assert isinstance(own, SearchConfig)
    assert (own.model, own.data, own.budget) == (Path("best.pt"), Path("data.yaml"), config.budget)
