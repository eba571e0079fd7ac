"""Adapter of Ultralytics' YOLO detectors (YOLOv3 to YOLO26)."""

from autoprune.models import stock
from autoprune.models.ultralytics.adapter import UltralyticsAdapter

__all__ = ["UltralyticsAdapter", "stock"]
