"""What a person chooses among, by the names that the command line and the files use."""

from __future__ import annotations

import re
from enum import Enum


class Rule(Enum):
    """How the environment makes an episode hold the budget."""

    PROJECTED = "projected"
    CAPPED = "capped"


MODULE_FORMAT = "autoprune.module"
"""What a checkpoint of a person's own network calls its format."""

_FACTORY = re.compile(
    r"(?P<source>.+?\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)(@(?P<weights>.+))?"
)


def match_factory(model: object) -> re.Match[str] | None:
    """Return the parts of a model that is named by the function that builds it, or None where it is a file.

    ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``, and ``@CHECKPOINT`` behind it for a pruned one: the groups
    ``source``, ``function`` and ``weights``.
    """
    return _FACTORY.fullmatch(str(model))


DARKNET = (".cfg", ".weights")
"""Suffixes of the two files of a Darknet network."""


class PenaltyName(Enum):
    """What sparsity training makes small."""

    L1 = "l1"
    """Each batch norm scale by itself."""
    GROUP_LASSO = "group-lasso"
    """All weights of a channel together."""


class Granularity(Enum):
    """Which single weights are set to zero."""

    TWO_OF_FOUR = "2:4"
    """Two of every four along the input channels, as sparse tensor cores want it."""
    UNSTRUCTURED = "unstructured"
    """The smallest, wherever they are."""


class Scope(Enum):
    """Among which weights the smallest are looked for."""

    LAYER = "layer"
    NETWORK = "network"


class Select(Enum):
    """What NetAdapt and the greedy search keep of a step's proposals."""

    ACCURACY = "accuracy"
    """The highest score (the paper)."""
    ACCURACY_PER_RESOURCE = "accuracy-per-resource"
    """The least score lost per cost saved (the authors' code)."""


class DataSetName(Enum):
    """Published data sets that can be turned into Ultralytics data sets."""

    OXFORD_HAND = "oxford-hand"


class Runtime(Enum):
    """What runs the network where latency is measured."""

    TORCH = "torch"
    TORCH_COMPILE = "torch-compile"
    CUDAGRAPH = "cudagraph"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


def is_device(name: str) -> bool:
    """Return whether a text names a device: cpu, cuda or cuda:N."""
    return re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name) is not None


class Precision(Enum):
    """Number format of weights and activations where latency is measured."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class ExportFormat(Enum):
    """What kind of file a network is exported to; each is run by one runtime."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCHSCRIPT = "torchscript"
    TENSORRT = "tensorrt"
