"""A `Session` for every task: Ultralytics' trainer of the task, and the splits as the task reads them."""

from __future__ import annotations

from typing import Any

from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.data import StretchedTrainingImages, TrainingFolders, TrainingImages
from autoprune.training.ultralytics.session import Session


class FileSession(Session):
    """Of images with label files."""

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a split as Ultralytics does; images for a size that is no square all have it."""
        rectangular = mode != "train" and self.image_size.square
        return _images(self, TrainingImages, img_path, mode=mode, batch=batch, rectangular=rectangular)


class DetectionSession(FileSession, stock.DetectionTrainer):  # type: ignore[misc]
    """Trains a detector."""


class SegmentationSession(FileSession, stock.SegmentationTrainer):  # type: ignore[misc]
    """Trains a network that predicts masks."""


class PoseSession(FileSession, stock.PoseTrainer):  # type: ignore[misc]
    """Trains a network that predicts keypoints."""


class OBBSession(FileSession, stock.OBBTrainer):  # type: ignore[misc]
    """Trains a detector of rotated boxes."""


class RTDETRSession(Session, stock.RTDETRTrainer):  # type: ignore[misc]
    """Trains an RT-DETR, whose images are stretched."""

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a split as Ultralytics does."""
        return _images(self, StretchedTrainingImages, img_path, mode=mode, batch=batch, rectangular=False)


class ClassificationSession(Session, stock.ClassificationTrainer):  # type: ignore[misc]
    """Trains a classifier, whose images lie in one folder per class."""

    summed = False

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a split as Ultralytics does."""
        return TrainingFolders(
            img_path,
            self.args,
            image_size=self.image_size,
            augment=mode == "train",
            prefix=mode,
            names=self.data["names"],
        )


def _images(
    session: Any, kind: type[TrainingImages], place: str, *, mode: str, batch: int | None, rectangular: bool
) -> Any:
    training = mode == "train"
    return kind(
        img_path=place,
        imgsz=session.image_size,
        batch_size=batch,
        augment=training,
        hyp=session.args,
        rect=rectangular,
        stride=session.stride,
        pad=0.0 if training else 0.5,
        data=session.data,
        task=session.args.task,
        single_cls=session.args.single_cls,
    )
