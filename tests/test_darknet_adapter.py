"""The adapter of Darknet's detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autoprune.errors import AutopruneError, DataError, ModelError
from autoprune.importance import make_criterion
from autoprune.models import open_adapter
from autoprune.models.darknet import DarknetAdapter, prune, read
from tests.contracts.adapters import check_adapter
from tests.darknet_detector import CFG, HEADER, SIZE, build, load, write_detector
from tests.detectors import write_data, write_yaml


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> DarknetAdapter:
    return load(tmp_path_factory.mktemp("darknet"))


def test_it_keeps_the_contract(adapter: DarknetAdapter, tmp_path: Path) -> None:
    check_adapter(adapter, prune(adapter.module, 0.5, order=make_criterion("l1").order), tmp_path)
