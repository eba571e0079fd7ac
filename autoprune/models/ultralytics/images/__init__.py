"""How the images of a data set come to a network: one implementation per kind of label."""

from __future__ import annotations

from collections.abc import Mapping

from autoprune.models import stock
from autoprune.models.ultralytics.images._base import Images
from autoprune.models.ultralytics.images.folders import FolderImages
from autoprune.models.ultralytics.images.labelled import LabelledFiles, StretchedFiles

IMAGES: Mapping[type, type[Images]] = {
    stock.DetectionModel: LabelledFiles,
    stock.SegmentationModel: LabelledFiles,
    stock.PoseModel: LabelledFiles,
    stock.OBBModel: LabelledFiles,
    stock.RTDETRDetectionModel: StretchedFiles,
    stock.ClassificationModel: FolderImages,
}
"""By the network's class."""

__all__ = ["IMAGES", "Images"]
