"""An Ultralytics trainer that trains the network it is given, instead of building the dense one again.

Stock Ultralytics rebuilds a network from its YAML file wherever training starts: in ``YOLO.train``, in the
trainer for a path, on resume, and in ``tune`` and DDP workers. Only weights whose shapes match are copied,
so a pruned network silently becomes a dense one with mostly fresh weights. All of these places go through
the trainer's ``get_model``; the one here hands over the network that was loaded.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import TrainingError
from autoprune.models.detection.channels import check_channels, input_channels
from autoprune.models.ultralytics import stock
from autoprune.training.shapes import Shapes, check_saved, shapes_of


class KeepsNetwork(stock.BaseTrainer):  # type: ignore[misc]
    """What the trainers of all tasks have in common; it comes before Ultralytics' trainer of the task.

    Everything but the origin of the network is Ultralytics' own: its arguments, augmentations, schedules,
    logging, resume and DDP. The checkpoints it writes hold stock classes only. ``optimizer="auto"`` ignores
    ``lr0``: name the optimizer if the learning rate matters (see `autoprune.training.finetune`). After every
    save the file is looked into: its tensors must have the shapes of the network that the training began with.

    Raises:
        TrainingError: what is asked would train another network than the pruned one, or a checkpoint holds another.
    """

    _shapes: Shapes

    def __init__(
        self, cfg: Any = stock.DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None
    ) -> None:
        super().__init__(cfg, overrides, _callbacks)
        if not self.resume and isinstance(self.args.pretrained, (str, Path)):
            raise TrainingError(
                f"pretrained={self.args.pretrained} would replace the pruned network by that checkpoint's; "
                "leave it out and load the pruned checkpoint itself"
            )

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Return a trainable copy of the network that was loaded; ``cfg``, its dense YAML, is ignored."""
        if weights is None:
            raise TrainingError(
                f"{type(self).__name__} trains the network of a checkpoint, and got none: load a .pt file and leave "
                "pretrained=True"
            )
        network: Any = deepcopy(weights).float()
        if len(network.names) != self.data["nc"]:
            raise TrainingError(
                f"the pruned network knows {len(network.names)} classes, but {self.args.data} names {self.data['nc']}: "
                "another number of classes needs another head; train the dense network on this data set first"
            )
        check_channels(Path(self.args.model), input_channels(network), self.data)
        network.criterion = None
        for name, parameter in network.named_parameters():
            parameter.requires_grad = ".dfl." not in name  # the fixed bins of the distribution are no weights
        network.names = self.data["names"]
        trainable: nn.Module = network
        return trainable

    def setup_model(self) -> Any:
        """Load the network if it is given as a file, and remember its shapes; returns the checkpoint to resume."""
        checkpoint = super().setup_model()
        self._shapes = shapes_of(self.model)
        return checkpoint

    def save_model(self) -> bool:
        """Write the checkpoints, and make sure that they hold the pruned network."""
        written: bool = super().save_model()
        check_saved(Path(self.last), self._shapes)
        return written

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device; on a CPU in channels-last order, which trains about a sixth faster."""
        prepared: dict[str, Any] = super().preprocess_batch(batch)
        if self.device.type == "cpu":
            prepared["img"] = prepared["img"].contiguous(memory_format=torch.channels_last)
        return prepared


class PrunedTrainer(KeepsNetwork, stock.DetectionTrainer):  # type: ignore[misc]
    """Trains a pruned detector with stock Ultralytics: ``YOLO("pruned.pt").train(trainer=PrunedTrainer, ...)``."""


class PrunedSegmentationTrainer(KeepsNetwork, stock.SegmentationTrainer):  # type: ignore[misc]
    """As `PrunedTrainer`, for networks that predict masks."""


class PrunedPoseTrainer(KeepsNetwork, stock.PoseTrainer):  # type: ignore[misc]
    """As `PrunedTrainer`, for networks that predict keypoints."""


class PrunedOBBTrainer(KeepsNetwork, stock.OBBTrainer):  # type: ignore[misc]
    """As `PrunedTrainer`, for networks that predict rotated boxes."""


class PrunedClassificationTrainer(KeepsNetwork, stock.ClassificationTrainer):  # type: ignore[misc]
    """As `PrunedTrainer`, for classifiers."""


class PrunedRTDETRTrainer(KeepsNetwork, stock.RTDETRTrainer):  # type: ignore[misc]
    """As `PrunedTrainer`, for RT-DETR: ``RTDETR("pruned.pt").train(trainer=PrunedRTDETRTrainer, ...)``."""
