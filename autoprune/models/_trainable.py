"""Networks whose family brings no training of its own: autoprune's plain loop trains them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from autoprune.models._base import Adapter, Batch


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with Nesterov's momentum, as the dense network was trained with.

    Attributes:
        lr: first learning rate, for the loss averaged over a batch's images.
        momentum: share of the last step that the next one keeps.
        weight_decay: pull of the weights towards zero.
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4


class TrainableAdapter(Adapter):
    """An adapter that gives the plain loop what it needs.

    Attributes:
        sgd: how the dense network was trained.
    """

    sgd: Sgd = Sgd()

    @abstractmethod
    def batches_per_epoch(self, batch: int) -> int:
        """Return how many batches of so many images `epoch` gives; fewer if images cannot be read."""

    @abstractmethod
    def epoch(self, *, batch: int, seed: int) -> Iterable[Batch]:
        """Give the whole training split once, as the network meets it in training, as batches on the device.

        Args:
            batch: images per batch; the last may hold fewer, unless it would hold a single one.
            seed: of the order and of the augmentations.

        Raises:
            DataError: as `batches`.
        """
