"""Ultralytics, imported and called without its side effects.

Importing Ultralytics writes a settings file, tests the internet connection, sets environment variables
(``OMP_NUM_THREADS=1`` among them), print options, OpenCV's thread count and warning filters, and replaces
``torch.save`` and ``PIL.Image.open``. Calling it prints, installs missing packages by pip, and reports to loggers and
analytics. This module prevents all of that:

* On import it imports Ultralytics once, offline, without automatic installs, and with a private folder for its settings
  (a copy of the user's, so that e.g. ``datasets_dir`` keeps its meaning, but with ``sync`` and all logger integrations
  off), and restores the global state. A user's own ``YOLO_CONFIG_DIR`` is respected. If the program imported
  Ultralytics first, its settings stay.
* `quiet` silences Ultralytics' logger and progress bars, and restores thread counts and environment, around each call.
* `child_environment` applies the same precautions to processes that Ultralytics starts (DDP).

Modules of autoprune import Ultralytics' names from `autoprune.models.stock`, which imports this module first.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch

_INTEGRATIONS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
_PRECAUTIONS = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}


def settings_file() -> Path:
    """Return where Ultralytics keeps the user's settings, whether the file exists or not."""
    if folder := os.environ.get("YOLO_CONFIG_DIR"):
        return Path(folder) / "Ultralytics" / "settings.json"
    if sys.platform == "win32":
        base = Path.home() / "AppData" / "Roaming"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "Ultralytics" / "settings.json"


def _user_settings() -> dict[str, object]:
    """Read the settings that Ultralytics would use, without creating or changing the file."""
    try:
        settings = json.loads(settings_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def integration_callbacks() -> list[tuple[str, Callable[[Any], None]]]:
    """Return (event, callback) of Ultralytics' integrations that the user's own settings of it switch on."""
    settings = _user_settings()
    modules = [
        import_module(f"ultralytics.utils.callbacks.{'wb' if name == 'wandb' else name}")
        for name in _INTEGRATIONS
        if settings.get(name) is True
    ]
    return [(event, callback) for module in modules for event, callback in module.callbacks.items()]


def _private_folder() -> Path:
    """Make a folder with the user's settings without network access; it is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="autoprune-ultralytics-"))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    settings = {**_user_settings(), "sync": False, "api_key": "", **dict.fromkeys(_INTEGRATIONS, False)}
    (folder / "Ultralytics").mkdir()
    (folder / "Ultralytics" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the context, and restore the whole environment afterwards."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Restore the process-wide settings that importing Ultralytics replaces."""
    printing, cv2_threads = np.get_printoptions(), cv2.getNumThreads()
    tensors = dict(vars(torch._tensor_str.PRINT_OPTS))
    save, image_open = torch.save, PIL.Image.open
    try:
        with warnings.catch_warnings():
            yield
    finally:
        vars(torch._tensor_str.PRINT_OPTS).update(tensors)
        np.set_printoptions(**printing)
        cv2.setNumThreads(cv2_threads)
        torch.save, PIL.Image.open = save, image_open


def _import_once() -> Path | None:
    """Import Ultralytics with all precautions; return the private settings folder, if one was made."""
    if "ultralytics" in sys.modules:
        return None
    folder = None if os.environ.get("YOLO_CONFIG_DIR") else _private_folder()
    precautions = dict(_PRECAUTIONS) if folder is None else {**_PRECAUTIONS, "YOLO_CONFIG_DIR": str(folder)}
    loud = os.environ.get("YOLO_VERBOSE") is None
    with _environment(precautions), _global_state_kept():
        import ultralytics.utils

    if loud:  # only the import is quiet: the program's own use of Ultralytics prints as usual
        ultralytics.utils.VERBOSE = True
        ultralytics.utils.set_logging(verbose=True)
    return folder


_FOLDER = _import_once()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Ultralytics (messages and progress bars), and keep its thread counts and environment from leaking.

    OpenCV runs on one thread meanwhile, as its threads do not survive a fork of data loaders.
    """
    logger = logging.getLogger("ultralytics")
    level, threads, cv2_threads = logger.level, torch.get_num_threads(), cv2.getNumThreads()
    logger.setLevel(logging.CRITICAL + 1)
    cv2.setNumThreads(0)
    try:
        with _environment({}):
            yield
    finally:
        logger.setLevel(level)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if cv2.getNumThreads() != cv2_threads:
            cv2.setNumThreads(cv2_threads)


@contextmanager
def child_environment() -> Iterator[None]:
    """Give child processes that import Ultralytics themselves the same precautions."""
    folder = {} if _FOLDER is None else {"YOLO_CONFIG_DIR": str(_FOLDER)}
    with _environment({**_PRECAUTIONS, **folder}):
        yield
