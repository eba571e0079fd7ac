"""Averages of the weights over a longer part of the fine-tune than Ultralytics' own, all of one training.

Usage: ``python -m tests.benchmarks.averages RUNS [WORD…]`` trains once more what the searches of
``tests.benchmarks.accuracy`` in RUNS have pruned, with their seeds, and prints mAP50-95 of every average. What is
finished is not repeated. With words only the searches that have one of them in their name: ``flops=20%``, ``yolov8n``.

After step t an average has taken in the new weights with the share 1 / (1 + f·t), so that it reaches over the last
f·t steps or so (power-function averages; Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
Models", CVPR 2024, section 3.1). f = 0 are the weights themselves. Ultralytics' average keeps 1 - exp(-t / 2000) of
what it had: after 260 steps it reaches over 1.1 of them, after 760 over 1.5.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autoprune.models import open_adapter
from autoprune.training.extensions._base import Event, Training, TrainingExtension
from autoprune.training.finetune import finetune
from autoprune.training.results import recalibrated
from tests.benchmarks.accuracy import EPOCHS, Run, asked, data_of, finished, model_of, planned

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""f: how much of the steps so far an average reaches over."""


class Averages(TrainingExtension):
    """Averages the weights in several ways while they are trained; changes nothing."""

    def __init__(self) -> None:
        self._steps = 0
        self.of: dict[float, dict[str, torch.Tensor]] = {}

    def attach(self, training: Training) -> None:
        """Listen to the steps."""
        training.listen(Event.STEPPED, self._take_in)

    def _take_in(self, training: Training) -> None:
        self._steps += 1
        state: Mapping[str, torch.Tensor] = training.model.state_dict()
        weights = {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}
        for share in SHARES:
            average = self.of.setdefault(share, {name: tensor.clone() for name, tensor in weights.items()})
            for name, tensor in average.items():
                tensor.lerp_(weights[name], 1 / (1 + share * self._steps))


def row(run: Run, runs: Path, out: Path) -> dict[str, float]:
    """Train the network that a search pruned, and return mAP50-95 by what is kept of the weights."""
    adapter = open_adapter(model_of(run.detector), data=data_of(run.detector), image_size=320)
    averages = Averages()
    result = finetune(
        adapter,
        adapter.reopen(run.folder(runs) / "pruned.pt"),
        epochs=EPOCHS,
        out=out,
        batch=16,
        seed=run.seed,
        recovers=True,
        extensions=[averages],
    )
    found = {"Ultralytics": adapter.validate(result.module).primary}
    for share, weights in averages.of.items():
        module: Any = copy.deepcopy(result.module)
        module.load_state_dict(weights, strict=False)  # counters of batches are not averaged
        found[f"f = {share:g}"] = adapter.validate(recalibrated(module, adapter, 16).eval()).primary
    return found


def main(runs: Path, words: Sequence[str]) -> None:
    """Make what is missing and print a table in Markdown."""
    for run in planned():
        name = run.folder(runs).name
        if run.study != "search" or finished(run, runs) is None or not asked(name, words):
            continue
        out = runs / f"averages-{name}"
        path = out / "row.json"
        if not path.exists():
            found = row(run, runs, out)
            path.write_text(json.dumps(found))
        cells = json.loads(path.read_text())
        print(f"| {name} | " + " | ".join(f"{kind} {value:.4f}" for kind, value in cells.items()) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
