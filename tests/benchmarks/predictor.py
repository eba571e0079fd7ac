"""How far predicted latencies are off: 30 fresh allocations on every runtime, here, on a board, and in batches.

Usage: ``python -m tests.benchmarks.predictor RUNS [WORD…]`` makes one ``autoprune profile --check`` per row into RUNS,
and prints a table in Markdown; what is there is not repeated. With words, only the rows that have one in their name.
The board is an sshd on the loopback address with a Python of its own, as in the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.benchmarks.accuracy import DETECTORS, asked, data_of, model_of
from tests.helpers.board import PACKAGES, running_board

BOARD = "BOARD"

ROWS = {
    **{f"{model} {runtime}": (model, "--runtime", runtime) for model in DETECTORS for runtime in ("ncnn", "litert")},
    **{f"yolov8n {runtime}": ("yolov8n", "--runtime", runtime) for runtime in ("torch", "onnxruntime", "openvino")},
    "yolov8n litert int8": ("yolov8n", "--runtime", "litert", "--precision", "int8"),
    "yolov8n onnxruntime int8": ("yolov8n", "--runtime", "onnxruntime", "--precision", "int8"),
    "yolov8n board onnxruntime": ("yolov8n", "--runtime", "onnxruntime", "--device", BOARD),
    "yolov8n board ncnn": ("yolov8n", "--runtime", "ncnn", "--device", BOARD),
    "yolov8n onnxruntime batch 4": ("yolov8n", "--runtime", "onnxruntime", "--runtime-batch", "4"),
    "yolov8n onnxruntime batch 32": ("yolov8n", "--runtime", "onnxruntime", "--runtime-batch", "32"),
}
"""Detector and options by the row's name."""


def command(out: Path, detector: str, options: Sequence[str]) -> list[str]:
    """Return the words of the command line."""
    model = ("--model", str(model_of(detector)))
    images = ("--data", str(data_of(detector))) if "int8" in options else ()
    fixed = ("--imgsz", "320", "--threads", "1", "--check", "--out", str(out))
    return [sys.executable, "-m", "autoprune", "profile", *model, *images, *options, *fixed]


def main(runs: Path, words: Sequence[str]) -> None:
    """Profile what is missing, and print the table."""
    runs.mkdir(parents=True, exist_ok=True)
    rows = {name: row for name, row in ROWS.items() if asked(name, words)}
    print("| | dense | error, held out | error, fresh | p90 | Spearman | seconds |\n|---|---|---|---|---|---|---|")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if any(BOARD in row for row in rows.values()):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            board = stack.enter_context(running_board(folder, (*PACKAGES, "ncnn")))
            patch.setenv("PATH", str(board.client), prepend=os.pathsep)
            rows = {name: tuple(board.url if word == BOARD else word for word in row) for name, row in rows.items()}
        for name, (detector, *options) in rows.items():
            out = runs / name.replace(" ", "-")
            start = time.perf_counter()
            if not (out / "profile.json").exists():
                done = subprocess.run(command(out, detector, options), check=False, capture_output=True, text=True)
                if done.returncode:
                    print(f"{name}: {done.stderr[-500:]}", file=sys.stderr, flush=True)
                    continue
            found = json.loads((out / "profile.json").read_text())
            held_out, fresh = found["predictor"]["held_out"], found["predictor"]["check"]
            dense = found["stages"]["dense"]["latencies"]["latency"]["median"]
            print(
                f"| {name} | {dense:.2f} ms | {held_out['median_abs_rel']:.1%} "
                f"| {fresh['median_abs_rel']:.1%} | {fresh['p90_abs_rel']:.1%} | {fresh['spearman']:.3f} "
                f"| {time.perf_counter() - start:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
