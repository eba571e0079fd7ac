"""The interface of a family without a trainer of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from autoprune.models._base import Adapter, Batch


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Settings of SGD with Nesterov momentum, with which the dense network was trained.

    Attributes:
        lr: initial learning rate, for the loss averaged over a batch's images.
        momentum: of the optimizer.
        weight_decay: L2 penalty of the weights.
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4


class TrainableAdapter(Adapter):
    """An adapter of a family without a trainer of its own: autoprune's plain loop trains its networks.

    Attributes:
        sgd: how the dense network was trained.
    """

    sgd: Sgd = Sgd()

    @abstractmethod
    def batches_per_epoch(self, batch: int) -> int:
        """Return the number of batches of `epoch`; fewer are yielded if images cannot be read."""

    @abstractmethod
    def epoch(self, *, batch: int, seed: int) -> Iterable[Batch]:
        """Return the whole training split once, augmented, as batches on the device.

        Args:
            batch: images per batch; the last may hold fewer, unless it would hold a single one.
            seed: of the order and of the augmentations.

        Raises:
            DataError: as `batches`.
        """
