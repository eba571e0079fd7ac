"""Networks as files, by Ultralytics' own exporter: ``YOLO(file)`` reads classes, stride and image size out of them.

The exporter writes ONNX and TorchScript. Other formats are made of these, see `autoprune.models.formats`: the exporter
would load their runtimes into this process, where OpenVINO reports over the network, and would build TensorRT engines
in another way than those that are measured.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import ModelError
from autoprune.models import stock
from autoprune.models._base import Convert, ExportSettings
from autoprune.models.formats import finish
from autoprune.runtimes._base import FULL
from autoprune.runtimes.exported import OPSET, named_operation

NOTES_KEY = "autoprune"
"""Under which notes travel in a file's metadata."""

_REPLACED = ".exported"  # the suffix of the file's name that the exporter puts its own in the place of


def write(
    module: nn.Module,
    folder: Path,
    settings: ExportSettings,
    *,
    image_size: int,
    task: str,
    end2end: bool,
    notes: Mapping[str, Any],
    convert: Convert,
) -> Path:
    """Write a network into an empty folder.

    Args:
        module: a network with what the exporter reads (``names``, ``stride``, ``yaml``, ``fuse``), as stock classes
            have it, on the device where it is traced; it is not modified.
        folder: where to.
        settings: what is written.
        image_size: square input size in pixels.
        task: Ultralytics' name of it.
        end2end: whether the head needs no suppression (YOLOv10, YOLO26), and is switched on.
        notes: plain JSON values, which travel in the file's metadata as JSON under the key ``autoprune``.
        convert: writes an ONNX file in the own format of the runtime.

    Returns:
        The format's file or folder.

    Raises:
        ModelError: the format has no such operation, or the exporter refuses the network.
    """
    traced = folder / f"model.{settings.spec.traced}"
    network: Any = deepcopy(module)
    network.task = task
    network.pt_path = str(traced.with_suffix(_REPLACED))
    options: dict[str, Any] = {
        "format": settings.spec.traced,
        "imgsz": image_size,
        "batch": 1,
        "device": str(next(network.parameters()).device),
        "dynamic": settings.dynamic,
    }
    if end2end:
        options["nms"] = False  # keeps an end-to-end head that is switched on
    if settings.spec.traced == "onnx":
        options |= {"opset": OPSET, "simplify": False}  # simplifying takes one more package, and runtimes do it anyway
    if settings.half:
        options["quantize"] = 16
    return finish(traced, settings.spec, _export(network, options, notes), convert)


def _export(network: Any, options: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Have the exporter write a network, and return the metadata that it wrote."""

    def add_notes(exporter: Any) -> None:
        if notes:
            exporter.metadata[NOTES_KEY] = json.dumps(dict(notes))

    try:
        with stock.quiet(), _left_alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: shape arithmetic is meant to become constant
            exporter = stock.Exporter(overrides=dict(options))
            exporter.callbacks = {"on_export_start": [add_notes]}  # and none that reports the export
            exporter(network)
    except MemoryError:
        raise
    except Exception as error:  # the exporter lets through whatever torch raises, and asserts its own rules
        if any(sign in str(error) for sign in FULL):
            raise
        if "output model too small" not in str(error):  # written, but below 0.1 MB, as pruned networks may be
            raise ModelError(_refusal(options["format"], error)) from error
    return dict(exporter.metadata)


def _refusal(name: str, error: Exception) -> str:
    operation = named_operation(error)
    reason = f"it has no operation for {operation}" if operation else (str(error) or repr(error)).splitlines()[0]
    return f"The network must be expressible in {name}, and is not ({reason}); use another `format`"


@contextmanager
def _left_alone() -> Iterator[None]:
    """Keep the exporter from installing packages, and from noting in the user's settings that it praised OpenVINO."""
    installs, praise = stock.checks.AUTOINSTALL, stock.SETTINGS.get("openvino_msg", True)
    stock.checks.AUTOINSTALL = False
    dict.__setitem__(stock.SETTINGS, "openvino_msg", False)  # its own method would write the file
    try:
        yield
    finally:
        stock.checks.AUTOINSTALL = installs
        dict.__setitem__(stock.SETTINGS, "openvino_msg", praise)
