"""Training of pruned networks: the trainers that keep them, one per task, and fine-tuning."""

from autoprune.training.ultralytics.trainer import (
    PrunedClassificationTrainer,
    PrunedOBBTrainer,
    PrunedPoseTrainer,
    PrunedRTDETRTrainer,
    PrunedSegmentationTrainer,
    PrunedTrainer,
)

__all__ = [
    "PrunedClassificationTrainer",
    "PrunedOBBTrainer",
    "PrunedPoseTrainer",
    "PrunedRTDETRTrainer",
    "PrunedSegmentationTrainer",
    "PrunedTrainer",
]
