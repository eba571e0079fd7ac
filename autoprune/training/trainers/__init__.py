"""How the networks of each family are trained: one file per trainer."""

from __future__ import annotations

from autoprune.errors import TrainingError
from autoprune.models._base import Adapter
from autoprune.models._trainable import TrainableAdapter
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.training.trainers._base import Trainer
from autoprune.training.trainers.plain import PlainTrainer
from autoprune.training.trainers.stock import StockTrainer

__all__ = ["Trainer", "trainer_of"]


def trainer_of(adapter: Adapter) -> Trainer:
    """Return what trains an adapter's networks.

    Raises:
        TrainingError: its family has no training.
    """
    if isinstance(adapter, UltralyticsAdapter):
        return StockTrainer(adapter)
    if isinstance(adapter, TrainableAdapter):
        return PlainTrainer(adapter)
    raise TrainingError(f"{adapter.name} must be of a family that autoprune can train, and is none")
