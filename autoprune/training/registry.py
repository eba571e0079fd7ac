"""Every trainer, one record each; a trainer is another file and one line here."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass

from autoprune.errors import TrainingError
from autoprune.models._base import Adapter
from autoprune.training.plan import Trainer


@dataclass(frozen=True)
class TrainerSpec:
    """A way of training the networks of a family.

    Attributes:
        name: short name.
        family: class of the adapters whose networks it trains, as ``module:class``.
        factory: makes the trainer of such an adapter, as ``module:class``; imported when it is used.
    """

    name: str
    family: str
    factory: str

    def trains(self, adapter: Adapter) -> bool:
        """Return whether an adapter is of the family; nothing is imported for that."""
        return any(f"{one.__module__}:{one.__qualname__}" == self.family for one in type(adapter).__mro__)

    def make(self, adapter: Adapter) -> Trainer:
        """Return the trainer of an adapter's networks."""
        trainer: Trainer = pkgutil.resolve_name(self.factory)(adapter)
        return trainer


TRAINERS = (
    TrainerSpec(
        "ultralytics",
        "autoprune.models.ultralytics.adapter:UltralyticsAdapter",
        "autoprune.training.ultralytics.launch:UltralyticsTrainer",
    ),
    TrainerSpec("plain", "autoprune.models._trainable:TrainableAdapter", "autoprune.training.plain:PlainTrainer"),
)
"""The first whose family an adapter is of trains its networks."""


def trainer_of(adapter: Adapter) -> Trainer:
    """Return what trains an adapter's networks.

    Raises:
        TrainingError: its family has no training.
    """
    for spec in TRAINERS:
        if spec.trains(adapter):
            return spec.make(adapter)
    raise TrainingError(f"{adapter.name} must be of a family that autoprune can train, and is none")
