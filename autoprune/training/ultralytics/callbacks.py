"""Ultralytics' own integrations in a training, for users who have switched them on in Ultralytics' settings."""

from __future__ import annotations

from typing import Any

from autoprune.errors import ConfigError
from autoprune.models.ultralytics import stock
from autoprune.training.extensions._base import Training, TrainingExtension


class UltralyticsCallbacks(TrainingExtension):
    """Lets those integrations hear a training that the user's settings of Ultralytics switch on.

    Example:
        >>> extension = UltralyticsCallbacks()  # then `yolo settings tensorboard=True` counts
    """

    def attach(self, training: Training) -> None:
        """Call the integrations' callbacks at Ultralytics' events.

        Raises:
            ConfigError: the settings switch none on.
        """
        callbacks = stock.integration_callbacks()
        if not callbacks:
            raise ConfigError(
                "`ultralytics_callbacks` needs an integration that Ultralytics' settings switch on; do so with e.g. "
                "yolo settings tensorboard=True"
            )
        session: Any = training  # a `Session`, which knows all of Ultralytics' events
        for event, callback in callbacks:
            session.listen(event, callback)
