"""The adapter of Darknet's detectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.importance import make_criterion
from autoprune.models.darknet import DarknetAdapter, prune
from tests.contracts.adapters import check_adapter
from tests.darknet_detector import load


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> DarknetAdapter:
    return load(tmp_path_factory.mktemp("darknet"))


def test_it_keeps_the_contract(adapter: DarknetAdapter, tmp_path: Path) -> None:
    check_adapter(adapter, prune(adapter.module, 0.5, order=make_criterion("l1").order), tmp_path)
