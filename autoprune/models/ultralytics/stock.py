"""Everything of Ultralytics that autoprune builds on, by name, imported without its side effects.

This is the only module that imports Ultralytics, and so the list to read when a new release
changes something. The training part lives apart (`autoprune.training`), because it loads slowly.
"""

from __future__ import annotations

from autoprune.models import _quiet  # first: it makes the imports below harmless

# isort: split
from ultralytics import __version__ as version
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, img2label_paths, verify_image_label
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel, guess_model_scale, torch_safe_load
from ultralytics.utils import DATASETS_DIR, DEFAULT_CFG_DICT, YAML, IterableSimpleNamespace
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.tal import TaskAlignedAssigner

quiet = _quiet.quiet

__all__ = [
    "DATASETS_DIR",
    "DEFAULT_CFG_DICT",
    "IMG_FORMATS",
    "YAML",
    "DetectionModel",
    "DetectionValidator",
    "E2ELoss",
    "IterableSimpleNamespace",
    "TaskAlignedAssigner",
    "YOLODataset",
    "get_cfg",
    "guess_model_scale",
    "img2label_paths",
    "non_max_suppression",
    "quiet",
    "tasks",
    "torch_safe_load",
    "v8DetectionLoss",
    "verify_image_label",
    "version",
]
