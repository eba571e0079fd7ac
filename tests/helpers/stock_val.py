"""What the stock command says about a checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from autoprune.models.ultralytics import stock
from tests.helpers.detectors import IMAGE_SIZE


def stock_val(weights: Path, data: Path, **options: Any) -> tuple[float, float]:
    """Return mAP50-95 and mAP50 as ``YOLO(weights).val(data=…)`` finds them at the size of the drawn images."""
    with stock.quiet(), tempfile.TemporaryDirectory() as folder:
        found: Any = stock.YOLO(weights, task="detect").val(
            data=str(data), imgsz=IMAGE_SIZE, device="cpu", plots=False, verbose=False, project=folder, **options
        )
    return float(found.box.map), float(found.box.map50)
