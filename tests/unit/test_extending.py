"""The table of plug-ins in the documentation names what there is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line.split("|")[1:-1]
    for line in (ROOT / "docs" / "extending.md").read_text().splitlines()
    if re.match(r"\| \w.*`", line)
]


def test_there_is_a_row_for_every_kind() -> None:
    assert len(ROWS) >= 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_the_registry_and_the_record_exist(row: list[str]) -> None:
    path, name = re.findall(r"`([^`]+)`", row[2])
    module = importlib.import_module(path.removesuffix(".py").replace("/", ".").replace("envs", "autoprune.envs", 1))
    assert hasattr(module, name)
    (record,) = re.findall(r"`(\w+)`", row[1])
    assert hasattr(module, record)
    assert all((ROOT / example).is_file() for example in re.findall(r"`([^`]+)`", row[3]))
