"""What may take part in a training next to the stock trainer: a penalty, a teacher, a schedule of one's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoprune.training.ultralytics.session import Session

GRADIENTS = "on_gradients"
"""A session's own event: the gradients of a step are complete, clipped, and not used yet."""

STEPPED = "on_stepped"
"""A session's own event: the optimizer has made its step, and the averaged weights do not know of it yet."""


class TrainingExtension(ABC):
    """Takes part in a training by listening to its events, Ultralytics' and the session's own two.

    An extension may change gradients (``GRADIENTS``), weights (``STEPPED``), or what the network's loss is
    (``on_train_start``). What it hangs onto the network must not be there when a checkpoint is written. What it learns
    itself must survive an interruption: it gives it to ``session.keep``, and has ``session.put_back`` return it.
    """

    @abstractmethod
    def attach(self, session: Session) -> None:
        """Listen to what matters, with ``session.listen``, before the training starts."""
