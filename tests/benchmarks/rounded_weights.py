"""Does quantisation-aware fine-tuning help where rounding hurts? Weights at few bits, before and after.

Usage: ``python -m tests.benchmarks.rounded_weights RUNS`` trains a detector twice per number of bits, with rounding and
without, into RUNS, and prints a table in Markdown. Per-channel int8 costs these detectors next to nothing, so that what
the fine-tuning is for shows at fewer bits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from autoprune.models import open_adapter
from autoprune.training.extensions._base import TrainingExtension
from autoprune.training.extensions.fake_quantization import FakeQuantization, rounded_weights
from autoprune.training.extensions.masking import convolution_weights
from autoprune.training.finetune import finetune

SHARED = Path(__file__).resolve().parents[3] / "shared"
DETECTOR, IMAGE_SIZE, EPOCHS = "bccd-yolov5nu-320", 320, 2
TRAININGS = ((4, 0.1), (3, 0.02))
"""Bits of the weights, and the learning rate as a share of the dense training's."""


def rounded(module: nn.Module, bits: int) -> nn.Module:
    """Return a copy with the weights of all convolutions rounded."""
    copy = deepcopy(module)
    with torch.no_grad():
        for weight in convolution_weights(copy).values():
            weight.copy_(rounded_weights(weight, bits=bits))
    return copy


def main(runs: Path) -> None:
    """Train, and print the table."""
    adapter = open_adapter(
        SHARED / "models" / f"{DETECTOR}.pt", data=SHARED / "data" / "bccd" / "bccd.yaml", image_size=IMAGE_SIZE
    )
    print("| bits | float | rounded | rounded, tuned with rounding | rounded, tuned without |")
    print("|---|---|---|---|---|")
    for bits, lr_scale in TRAININGS:
        ways: dict[str, Sequence[TrainingExtension]] = {"aware": [FakeQuantization(weight_bits=bits)], "plain": []}
        tuned = [
            finetune(
                adapter, adapter.module, epochs=EPOCHS, lr_scale=lr_scale, out=runs / f"{bits}-{way}", extensions=taking
            ).module
            for way, taking in ways.items()
        ]
        networks = [adapter.module, *(rounded(one, bits) for one in (adapter.module, *tuned))]
        print(
            f"| {bits} | " + " | ".join(f"{adapter.validate(one).primary:.3f}" for one in networks) + " |", flush=True
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
