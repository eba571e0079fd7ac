"""Searches under latency budgets: is each held as measured, and how much of it is used?

Usage: ``python -m tests.benchmarks.budgets_kept RUNS [edge]`` writes one run folder per search into RUNS: ten on torch,
OpenVINO and ONNX Runtime, or ten on NCNN and LiteRT. A search that is there already is not repeated, one that was
interrupted goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.accuracy import data_of, model_of

EPISODES = 100

SEARCHES = {
    "desktop": (
        ("yolov8n", "torch", 70),
        ("yolov8n", "openvino", 40),
        ("yolov8n", "openvino", 60),
        ("yolov8n", "openvino", 90),
        ("yolov8n", "onnxruntime", 50),
        ("yolov8n", "onnxruntime", 80),
        ("yolov5nu", "torch", 55),
        ("yolov5nu", "openvino", 65),
        ("yolov5nu", "onnxruntime", 45),
        ("yolov5nu", "onnxruntime", 75),
    ),
    "edge": (
        ("yolov8n", "ncnn", 40),
        ("yolov8n", "ncnn", 60),
        ("yolov5nu", "ncnn", 50),
        ("yolov5nu", "ncnn", 80),
        ("yolo11n", "ncnn", 70),
        ("yolov8n", "litert", 50),
        ("yolov8n", "litert", 70),
        ("yolov5nu", "litert", 60),
        ("yolo11n", "litert", 40),
        ("yolo11n", "litert", 80),
    ),
}
"""Detector, runtime, percent of the dense latency."""


def main(runs: Path, kind: str = "desktop") -> None:
    """Search, and print a table in Markdown."""
    print("| detector | runtime | budget | dense | limit | measured | of the limit | predictor's error | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model, runtime, percent in SEARCHES[kind]:
        found, seconds = _searched(runs / f"{model}-{runtime}-{percent}", model, runtime, percent)
        (row,) = found["budget"]
        error = found["search"]["latency_prediction_error"]
        print(
            f"| {model} | {runtime} | {percent}% | {row['dense']:.2f} ms | {row['limit']:.2f} ms "
            f"| {row['achieved']:.2f} ms | {row['achieved'] / row['limit']:.1%} "
            f"| {error['median_abs_rel']:.1%} | {seconds} |",
            flush=True,
        )


def _searched(out: Path, model: str, runtime: str, percent: int) -> tuple[dict[str, Any], str]:
    """Return a search's summary, and how long it took where it ran now."""
    summary, seconds = out / "summary.json", "–"
    if not summary.exists():
        told = [
            "--model",
            str(model_of(model)),
            "--data",
            str(data_of(model)),
            "--imgsz",
            "320",
            "--runtime",
            runtime,
            "--budget",
            f"latency={percent}%",
            "--episodes",
            str(EPISODES),
            "--finetune-epochs",
            "0",
            "--out",
            str(out),
        ]
        start = time.perf_counter()
        words = ["--resume", str(out)] if out.exists() else told
        done = subprocess.run(
            [sys.executable, "-m", "autoprune", "search", *words], check=False, capture_output=True, text=True
        )
        if not summary.exists():
            raise SystemExit(done.stderr)
        seconds = f"{time.perf_counter() - start:.0f}"
    return json.loads(summary.read_text()), seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
