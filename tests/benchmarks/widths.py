"""Which widths does a runtime compute at no extra cost? A convolution at every fourth width, on each runtime.

Usage: ``python -m tests.benchmarks.widths`` prints a table in Markdown: milliseconds by width. All widths of a runtime
run in turn on one thread, many times; the least time of each counts, which other processes disturb least.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from autoprune.choices import Precision, Runtime
from autoprune.latency.timing import time_interleaved
from autoprune.runtimes import open_backend, runtime_settings

CHANNELS, SIZE = 64, 40
"""Inputs of the convolution, and the height and width of its image."""

WIDTHS = range(32, 101, 4)
ROUNDS = 60
RUNTIMES = (
    ("torch", Precision.FP32),
    ("onnxruntime", Precision.FP32),
    ("onnxruntime", Precision.INT8),
    ("openvino", Precision.FP32),
    ("openvino", Precision.INT8),
    ("ncnn", Precision.FP32),
    ("litert", Precision.FP32),
    ("litert", Precision.INT8),
    ("executorch", Precision.FP32),
)


def network(width: int) -> nn.Module:
    """Return a convolution between two that stay as they are, so that its output is read as in a network."""
    layers = [nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(CHANNELS, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 8, 1)]
    return nn.Sequential(*layers).eval()


def times(runtime: str, precision: Precision) -> list[float]:
    """Return the milliseconds of every width."""
    settings = runtime_settings("cpu", image_size=SIZE, runtime=Runtime(runtime), precision=precision, threads=1)
    backend = open_backend(settings)
    with backend.session():
        runners = [backend.prepare(network(width), settings.shape) for width in WIDTHS]
        return np.percentile(time_interleaved(runners, ROUNDS), 5, axis=0).tolist()


def main() -> None:
    """Print the table."""
    print("| runtime | " + " | ".join(map(str, WIDTHS)) + " |")
    print("|---" * (len(WIDTHS) + 1) + "|")
    for runtime, precision in RUNTIMES:
        row = " | ".join(f"{value:.2f}" for value in times(runtime, precision))
        print(f"| {runtime} {precision.value} | {row} |", flush=True)


if __name__ == "__main__":
    main()
