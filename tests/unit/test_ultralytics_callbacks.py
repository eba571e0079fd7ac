"""Ultralytics' own integrations hear a training only if they are asked for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from autoprune.errors import ConfigError
from autoprune.models import _quiet
from autoprune.training.ultralytics.callbacks import UltralyticsCallbacks


class Heard:
    """A training that keeps who listens to it."""

    def __init__(self) -> None:
        self.listeners: list[tuple[str, Any]] = []

    def listen(self, event: str, listener: Any) -> None:
        self.listeners.append((event, listener))


def test_only_the_integrations_of_the_users_settings_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> ModuleType:
        module = ModuleType(name)
        module.callbacks = {"on_fit_epoch_end": name}  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(_quiet, "import_module", imported)
    monkeypatch.setattr(_quiet, "_user_settings", lambda: {"wandb": True, "tensorboard": True, "mlflow": False})
    training: Any = Heard()
    UltralyticsCallbacks().attach(training)
    assert training.listeners == [
        ("on_fit_epoch_end", "ultralytics.utils.callbacks.tensorboard"),
        ("on_fit_epoch_end", "ultralytics.utils.callbacks.wb"),
    ]


def test_settings_that_switch_none_on_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quiet, "_user_settings", lambda: {"wandb": False})
    with pytest.raises(ConfigError, match="yolo settings tensorboard=True"):
        UltralyticsCallbacks().attach(Heard())  # type: ignore[arg-type]
