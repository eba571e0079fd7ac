"""All names of Ultralytics that autoprune uses, imported without side effects.

This and `autoprune.models._quiet` are the only modules that import Ultralytics: check this list against a new release.
Adapters of other families read labels and measure accuracy by the same code.
"""

from __future__ import annotations

# First: it makes the imports below harmless.
from autoprune.models._quiet import child_environment, integration_callbacks, quiet, settings_file

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
    torch_safe_load,
)
from ultralytics.optim import muon
from ultralytics.utils import DATASETS_DIR, DEFAULT_CFG, DEFAULT_CFG_DICT, ROOT, SETTINGS, YAML, checks
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.patches import imread
from ultralytics.utils.tal import bbox2dist, dist2bbox, make_anchors
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model
