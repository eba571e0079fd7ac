"""All names of Ultralytics that autoprune uses, imported without side effects.

This and `autoprune.models._quiet` are the only modules that import Ultralytics: check this list against a new release.
Adapters of other families read labels and measure accuracy by the same code.
"""

from __future__ import annotations

from autoprune.models import _quiet  # first: it makes the imports below harmless

# isort: split
from ultralytics import YOLO
from ultralytics import __version__ as version
from ultralytics.cfg import get_cfg
from ultralytics.data import utils as data_utils
from ultralytics.data.augment import Compose, Mosaic, RandomPerspective, classify_augmentations, classify_transforms
from ultralytics.data.dataset import ClassificationDataset, YOLODataset
from ultralytics.data.utils import IMG_FORMATS, img2label_paths, verify_image_label
from ultralytics.engine.exporter import Exporter, NMSModel
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.rtdetr.val import RTDETRDataset, RTDETRValidator
from ultralytics.models.yolo.classify import ClassificationTrainer, ClassificationValidator
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.models.yolo.obb import OBBTrainer, OBBValidator
from ultralytics.models.yolo.pose import PoseTrainer, PoseValidator
from ultralytics.models.yolo.segment import SegmentationTrainer, SegmentationValidator
from ultralytics.nn import tasks
from ultralytics.nn.modules import Classify, Conv, Detect, RTDETRDecoder
from ultralytics.nn.tasks import (
    ClassificationModel,
    DetectionModel,
    OBBModel,
    PoseModel,
    RTDETRDetectionModel,
    SegmentationModel,
    guess_model_scale,
    guess_model_task,
    torch_safe_load,
)
from ultralytics.utils import (
    DATASETS_DIR,
    DEFAULT_CFG,
    DEFAULT_CFG_DICT,
    ROOT,
    SETTINGS,
    YAML,
    IterableSimpleNamespace,
    checks,
)
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.patches import imread
from ultralytics.utils.tal import bbox2dist, dist2bbox, make_anchors
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

child_environment = _quiet.child_environment
integration_callbacks = _quiet.integration_callbacks
quiet = _quiet.quiet
settings_file = _quiet.settings_file

__all__ = [
    "DATASETS_DIR",
    "DEFAULT_CFG",
    "DEFAULT_CFG_DICT",
    "GITHUB_ASSETS_NAMES",
    "IMG_FORMATS",
    "ROOT",
    "SETTINGS",
    "YAML",
    "YOLO",
    "BaseTrainer",
    "ClassificationDataset",
    "ClassificationModel",
    "ClassificationTrainer",
    "ClassificationValidator",
    "Classify",
    "Compose",
    "Conv",
    "Detect",
    "DetectionModel",
    "DetectionTrainer",
    "DetectionValidator",
    "Exporter",
    "IterableSimpleNamespace",
    "Mosaic",
    "NMSModel",
    "OBBModel",
    "OBBTrainer",
    "OBBValidator",
    "PoseModel",
    "PoseTrainer",
    "PoseValidator",
    "RTDETRDataset",
    "RTDETRDecoder",
    "RTDETRDetectionModel",
    "RTDETRTrainer",
    "RTDETRValidator",
    "RandomPerspective",
    "SegmentationModel",
    "SegmentationTrainer",
    "SegmentationValidator",
    "YOLODataset",
    "attempt_download_asset",
    "bbox2dist",
    "bbox_iou",
    "checks",
    "child_environment",
    "classify_augmentations",
    "classify_transforms",
    "data_utils",
    "ddp_cleanup",
    "dist2bbox",
    "generate_ddp_file",
    "get_cfg",
    "guess_model_scale",
    "guess_model_task",
    "img2label_paths",
    "imread",
    "integration_callbacks",
    "make_anchors",
    "non_max_suppression",
    "quiet",
    "settings_file",
    "strip_optimizer",
    "tasks",
    "torch_safe_load",
    "unwrap_model",
    "v8DetectionLoss",
    "verify_image_label",
    "version",
]
