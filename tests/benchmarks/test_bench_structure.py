"""Analysis at most 10 s for any network; a YOLOv8n candidate in at most 30 ms. ``pytest tests/benchmarks``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.networks import FREE_OUTPUTS, NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_analysis(benchmark: Any, name: str) -> None:
    module = NETWORKS[name]().eval()
    benchmark.pedantic(analyse, (module, torch.rand(2, 3, 320, 320)), {"free_outputs": FREE_OUTPUTS}, rounds=1)


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.2])
def test_materialise_yolov8n(benchmark: Any, ratio: float) -> None:
    module = NETWORKS["yolov8n"]().eval()
    graph = analyse(module, torch.rand(2, 3, 64, 64), free_outputs=FREE_OUTPUTS)
    space, surgeon = Space(graph), Slicer(module, graph)
    order = [np.arange(group.size) for group in graph.groups]
    keep = space.kept_channels(space.round_down(np.full(len(space), ratio)), order)
    benchmark.pedantic(surgeon.materialise, (keep,), rounds=30, warmup_rounds=3)
