"""Peak memory of a search on a YOLOv8n at 640 px with 128 images: ``python -m tests.benchmarks.memory``."""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

from autoprune.cli.main import main

SHARED = Path(__file__).resolve().parents[3] / "shared"


def measure() -> int:
    """Run the search and print the process's peak resident size."""
    with tempfile.TemporaryDirectory() as folder:
        code = main(
            [
                "search",
                "--model",
                str(SHARED / "models" / "bccd-yolov8n-320.pt"),
                "--data",
                str(SHARED / "data" / "bccd" / "bccd.yaml"),
                "--imgsz",
                "640",
                "--images",
                "128",
                "--budget",
                "flops=50%",
                "--episodes",
                "5",
                "--finalists",
                "1",
                "--finetune-epochs",
                "0",
                "--out",
                f"{folder}/run",
            ]
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident memory: {peak:.2f} GiB")
    return code


if __name__ == "__main__":
    sys.exit(measure())
