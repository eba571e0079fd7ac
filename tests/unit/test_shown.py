"""What a report is given of a search, and of detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from autoprune.listener import SilentListener
from autoprune.report.detections import FILE
from autoprune.results import Metrics
from autoprune.strategies._base import Candidate
from autoprune.workflows.shown import keep_best_detections, keep_detections, search_figures

HISTORY = [Candidate((8, 8), -0.2), Candidate((8, 16), 0.1)]
COSTS: Any = {"flops": lambda counts: np.asarray(counts).sum(axis=-1).astype(float)}


def test_candidates_have_score_and_cost_in_order() -> None:
    found = search_figures(HISTORY, COSTS, HISTORY[1], prior=1)
    assert found == {"scores": [-0.2, 0.1], "costs": {"flops": [16.0, 24.0]}, "prior": 1, "chosen": 1}


def test_a_network_that_was_fitted_to_its_budget_afterwards_is_added() -> None:
    found = search_figures(HISTORY, COSTS, Candidate((8, 12), 0.05), prior=0)
    assert (found["scores"], found["chosen"], found["costs"]["flops"][-1]) == ([-0.2, 0.1, 0.05], 2, 20.0)


def test_detections_that_cannot_be_made_cost_a_warning_only(tmp_path: Path) -> None:
    class Broken:
        has_images = True

        def batches(self, *_: object, **__: object) -> None:
            raise RuntimeError("no picture today")

    class Heard(SilentListener):
        said: str = ""

        def warn(self, text: str) -> None:
            self.said = text

    heard, adapter = Heard(), Broken()
    keep_detections(adapter, {}, tmp_path, heard)  # type: ignore[arg-type]
    assert heard.said == "The report shows no detections: no picture today"
    assert not (tmp_path / FILE).exists()


def test_a_comparison_shows_its_best_network_that_has_a_checkpoint(tmp_path: Path) -> None:
    class Opened(RuntimeError):
        pass

    class Family:
        has_images, module = True, nn.Identity()

        def checkpoint(self, folder: Path, name: str) -> Path:
            return folder / f"{name}.pt"

        def reopen(self, path: Path) -> nn.Module:
            raise Opened(f"{path.parent.name} is the best")

    class Heard(SilentListener):
        def __init__(self) -> None:
            self.said: list[str] = []

        def warn(self, text: str) -> None:
            self.said.append(text)

    for name in ("ppo-0", "ppo-1", "untrained-0"):
        (tmp_path / "networks" / name).mkdir(parents=True)
        (tmp_path / "networks" / name / "model.pt").touch()
    found = {"ppo-0": Metrics({"mAP": 0.4}), "ppo-1": Metrics({"mAP": 0.5}), "elsewhere-0": Metrics({"mAP": 0.6})}
    heard, family = Heard(), Family()
    keep_best_detections(family, {**found, "untrained-0": None}, tmp_path, heard)  # type: ignore[arg-type]
    keep_best_detections(family, {"untrained-0": None}, tmp_path, heard)  # type: ignore[arg-type]
    assert heard.said == ["The report shows no detections: ppo-1 is the best"]


@pytest.mark.parametrize("there", [True, False])
def test_detections_are_made_once(tmp_path: Path, there: bool) -> None:
    class Untouched:
        has_images = there

    if there:
        (tmp_path / FILE).write_text("[]")
    keep_detections(Untouched(), {}, tmp_path, SilentListener())  # type: ignore[arg-type]
    assert (tmp_path / FILE).exists() == there
