"""Formats that networks are exported to: a new one is a record here and a file in ``models/formats``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autoprune.choices import Precision, RecordEnum, Runtime, add_members


@dataclass(frozen=True)
class Tolerance:
    """How far an exported network's predictions may lie from torch's.

    Attributes:
        scores: of a class's score, in [0, 1].
        boxes: of a box's coordinates, in pixels.
        accuracy: of the primary metric.

    Example:
        >>> TOLERANCES[Precision.FP32].scores
        0.001
    """

    scores: float
    boxes: float
    accuracy: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    Precision.FP32: Tolerance(scores=0.001, boxes=0.1, accuracy=0.001),
    # Eleven bits: a box is off by the rounding of its bins times its stride, which no one number bounds.
    Precision.FP16: Tolerance(scores=0.1, boxes=math.inf, accuracy=0.01),
}
"""By the precision that a network is exported in. Runtimes sum in another order than torch, and no more, in fp32."""


@dataclass(frozen=True)
class FormatSpec:
    """What is known of a format before a network is exported to it.

    Attributes:
        name: as options and files name it.
        suffix: what follows ``model`` in the name of the file or folder that is written.
        runtime: name of the runtime that runs it.
        backend: ``module:class`` of the `autoprune.runtimes.FileBackend` that runs it.
        traced: what torch writes of the network, by its suffix: a program of ``torch.export`` is ``pt2``.
        write: ``module:function`` of what makes the format of that, an `autoprune.models.formats.Write`; empty if the
            traced file is the format.
        dynamic: whether its files can leave batch and image size open.
        nms: whether its files can have non-maximum suppression inside.
        modules: whether networks of users' own classes are written in it, too.
        stock: whether Ultralytics' ``YOLO`` opens its files and reads the metadata in them.
        tolerance: by each precision that it is written in, how far predictions may lie from torch's.
        placeholders: what a benchmark command calls its files, each with the file's pattern in the format's folder;
            empty for the format's one file.

    Example:
        >>> spec = ExportFormat("torchscript").spec
        >>> spec.file, spec.runtime, spec.dynamic
        ('model.torchscript', 'torch', False)
    """

    name: str
    suffix: str
    runtime: str
    backend: str
    traced: Literal["onnx", "torchscript", "pt2"] = "onnx"
    write: str = ""
    dynamic: bool = False
    nms: bool = False
    modules: bool = True
    stock: bool = True
    tolerance: Mapping[Precision, Tolerance] = field(default_factory=lambda: TOLERANCES)
    placeholders: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of the file or folder that is written."""
        return f"model{self.suffix}"


_RUNTIMES, _WRITERS = "autoprune.runtimes", "autoprune.models.formats"

FORMATS = (
    FormatSpec(
        "onnx",
        ".onnx",
        "onnxruntime",
        f"{_RUNTIMES}.onnx_runtime:OnnxRuntimeBackend",
        dynamic=True,
        nms=True,
        placeholders={"onnx": ""},
    ),
    FormatSpec(
        "openvino",
        "_openvino_model",  # Ultralytics knows the format by the end of the folder's name
        "openvino",
        f"{_RUNTIMES}.open_vino:OpenVinoBackend",
        write=f"{_WRITERS}.folders:write_openvino",
        dynamic=True,
        nms=True,
        placeholders={"openvino_xml": "*.xml"},
    ),
    FormatSpec(
        "ncnn",
        "_ncnn_model",  # as OpenVINO's
        "ncnn",
        f"{_RUNTIMES}.ncnn:NcnnBackend",
        write=f"{_WRITERS}.folders:write_ncnn",
        placeholders={"ncnn_param": "*.param", "ncnn_bin": "*.bin"},
    ),
    FormatSpec(
        "litert",
        ".tflite",
        "litert",
        f"{_RUNTIMES}.lite_rt:LiteRtBackend",
        write=f"{_WRITERS}.lite_rt:write",
        tolerance={Precision.FP32: TOLERANCES[Precision.FP32]},
        placeholders={"tflite": ""},
    ),
    FormatSpec(
        "executorch",
        "_executorch_model",  # as OpenVINO's
        "executorch",
        f"{_RUNTIMES}.executorch:ExecuTorchBackend",
        traced="pt2",
        write=f"{_WRITERS}.folders:write_executorch",
        tolerance={Precision.FP32: TOLERANCES[Precision.FP32]},
        placeholders={"pte": "*.pte"},
    ),
    FormatSpec(
        "torchscript",
        ".torchscript",
        "torch",
        f"{_RUNTIMES}.torch_script:TorchScriptBackend",
        traced="torchscript",
        nms=True,
        placeholders={"torchscript": ""},
    ),
    FormatSpec(
        "tensorrt",
        ".engine",
        "tensorrt",
        f"{_RUNTIMES}.tensor_rt:TensorRtBackend",
        write=f"{_WRITERS}.tensor_rt:write",
        modules=False,
    ),
)
"""In the order in which help and messages list them."""


class ExportFormat(RecordEnum):
    """What kind of file a network is exported to; each is run by one runtime.

    Example:
        >>> ExportFormat("onnx").runtime.value
        'onnxruntime'
    """

    spec: FormatSpec
    add_members(vars(), FORMATS)

    @property
    def runtime(self) -> Runtime:
        """What runs such files."""
        return Runtime(self.spec.runtime)


ONNX = ExportFormat("onnx")
"""What is written by default, and what networks are quantised from."""


def formats_where(field: str) -> str:
    """Return the names of the formats for which a field of the record holds, as messages list them.

    Example:
        >>> formats_where("dynamic")
        'onnx or openvino'
    """
    *others, last = [spec.name for spec in FORMATS if getattr(spec, field)]
    return f"{', '.join(others)} or {last}" if others else last
