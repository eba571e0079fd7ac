"""Adapter of Ultralytics' networks: YOLOv3 to YOLO26 in all tasks with boxes, and classifiers; RT-DETR."""

from autoprune.models import stock
from autoprune.models.ultralytics.adapter import UltralyticsAdapter

__all__ = ["UltralyticsAdapter", "stock"]
