"""Deployed detectors: with non-maximum suppression, and exported by Ultralytics' own exporter.

``YOLO(file)`` reads classes, stride and image size from the metadata of exported files. The exporter writes ONNX,
TorchScript and programs of ``torch.export``; other formats are converted from these, see `autoprune.models.formats`.
The exporter would load their runtimes into this process, where OpenVINO sends telemetry, and would build other TensorRT
engines than the measured.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import AutopruneError, ModelError, first_line, is_out_of_memory
from autoprune.image_size import ImageSize
from autoprune.models import stock
from autoprune.models._base import Convert, ExportSettings
from autoprune.models.formats import finish
from autoprune.runtimes.exported import OPSET, export_pt2, named_operation

NOTES_KEY = "autoprune"
"""Key of the notes in a file's metadata."""

CONFIDENCE = 0.25
"""Score below which a box is dropped; Ultralytics' default for exports with ``nms=True``."""

_REPLACED = ".exported"  # suffix that the exporter replaces by its own


def write(
    module: nn.Module,
    folder: Path,
    settings: ExportSettings,
    *,
    image_size: ImageSize,
    task: str,
    end2end: bool,
    notes: Mapping[str, Any],
    convert: Convert,
) -> Path:
    """Export a network into an empty folder.

    Args:
        module: a network with the attributes that the exporter reads (``names``, ``stride``, ``yaml``, ``fuse``), as
            stock classes have, on the device where it is traced; it is not modified.
        folder: where to.
        settings: format and precision.
        image_size: of the input.
        task: Ultralytics' name of it.
        end2end: whether the head is end-to-end (YOLOv10, YOLO26) and switched on.
        notes: plain JSON values for the file's metadata, as JSON under the key ``autoprune``.
        convert: converts a traced file to the runtime's own format.

    Returns:
        The format's file or folder.

    Raises:
        ModelError: the format has no such operation, or the exporter refuses the network.
        DeviceError: ``torch.export`` refuses it.
    """
    traced = folder / f"model.{settings.spec.traced}"
    network: Any = deepcopy(module)
    network.task = task
    network.pt_path = str(traced.with_suffix(_REPLACED))
    options: dict[str, Any] = {
        "format": _EXPORTERS[settings.spec.traced][0],
        "imgsz": image_size.plain,
        "batch": settings.batch,
        "device": str(next(network.parameters()).device),
        "dynamic": settings.dynamic,
    }
    if end2end:
        options["nms"] = False  # keeps an end-to-end head that is switched on
    elif settings.nms:
        options |= {"nms": True, "conf": CONFIDENCE}
    if settings.spec.traced == "onnx":
        # Simplifying takes one more package, and runtimes do it anyway.
        options |= {"opset": settings.opset or OPSET, "simplify": False}
    if settings.half:
        options["quantize"] = 16
    return finish(traced, settings.spec, _export(network, options, notes, settings.spec.traced), convert)


class _ProgramExporter(stock.Exporter):  # type: ignore[misc]
    """Writes a program of ``torch.export`` where it is asked for TorchScript, with the same heads and metadata."""

    def export_torchscript(self, prefix: str = "") -> str:
        """Write the program and return its path."""
        path = self.file.with_suffix(".pt2")
        export_pt2(self.model, tuple(self.im.shape), path)
        return str(path)


_EXPORTERS = {
    "onnx": ("onnx", stock.Exporter),
    "torchscript": ("torchscript", stock.Exporter),
    "pt2": ("torchscript", _ProgramExporter),
}
"""Which format an exporter is asked for, and the exporter, by what is written of the network."""


def _export(network: Any, options: Mapping[str, Any], notes: Mapping[str, Any], traced: str) -> dict[str, Any]:
    """Export a network and return the file's metadata."""

    def add_notes(exporter: Any) -> None:
        if notes:
            exporter.metadata[NOTES_KEY] = json.dumps(dict(notes))

    try:
        with stock.quiet(), _left_alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: shape arithmetic becomes constant on purpose
            exporter = _EXPORTERS[traced][1](overrides=dict(options))
            exporter.callbacks = {"on_export_start": [add_notes]}  # and no callback that reports the export
            exporter(network)
    except AutopruneError:
        raise
    except Exception as error:  # any error of torch, and the exporter's own assertions
        if is_out_of_memory(error):
            raise
        if "output model too small" not in str(error):  # written, but below 0.1 MB, as pruned networks may be
            raise ModelError(_refusal(traced, error)) from error
    return dict(exporter.metadata)


def _refusal(name: str, error: Exception) -> str:
    operation = named_operation(error)
    reason = f"it has no operation for {operation}" if operation else first_line(error)
    return f"The network must be expressible in {name}, and is not ({reason}); use another `format`"


@contextmanager
def _left_alone() -> Iterator[None]:
    """Keep the exporter from installing packages, and from changing the user's settings."""
    installs, praise = stock.checks.AUTOINSTALL, stock.SETTINGS.get("openvino_msg", True)
    stock.checks.AUTOINSTALL = False
    dict.__setitem__(stock.SETTINGS, "openvino_msg", False)  # its own method would write the file
    try:
        yield
    finally:
        stock.checks.AUTOINSTALL = installs
        dict.__setitem__(stock.SETTINGS, "openvino_msg", praise)


def suppressed(network: nn.Module, *, task: str = "detect") -> nn.Module:
    """Return a detector followed by non-maximum suppression, as Ultralytics' ``export(nms=True)`` builds it.

    The output has shape (B, 300, 6): x1, y1, x2, y2 in pixels, score, class; rows beyond the detections are zero. The
    time of suppression grows with the number of boxes; on noise there are few, so times on noise are a lower bound.

    Args:
        network: fused, eval mode, with the ``names`` of its classes; it maps images to predictions of shape
            (B, 4 + classes + extras, anchors), x1, y1, x2, y2 in pixels and scores. It becomes a submodule.
        task: Ultralytics' name of it.
    """
    settings = stock.get_cfg(overrides={"format": "onnx", "nms": True, "conf": CONFIDENCE})
    whole: nn.Module = stock.NMSModel(_SinglePrecision(network, task), settings).eval()
    return whole


class _SinglePrecision(nn.Module):
    """Converts a detector's predictions to float32: on CPUs suppression is implemented for nothing else."""

    def __init__(self, network: Any, task: str) -> None:
        super().__init__()
        self.network = network
        self.names = network.names
        self.task = task

    def forward(self, image: torch.Tensor) -> Any:
        predictions = self.network(image)
        if isinstance(predictions, tuple):  # with prototypes of masks
            return tuple(part.float() for part in predictions)
        return predictions.float()
