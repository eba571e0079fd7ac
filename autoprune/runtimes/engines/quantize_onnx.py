"""ONNX Runtime's static quantisation, inside a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

_STYLES: Mapping[str, tuple[QuantType, Mapping[str, bool]]] = {
    # Unsigned: with signed activations a CPU with VNNI takes 34 ms instead of 10 (fp32: 21).
    "onnxruntime": (QuantType.QUInt8, {"WeightSymmetric": True}),
    # ONNX Runtime's own kernels clamp where they round, so it drops ReLU; LiteRT's scales may be joined with others.
    "litert": (QuantType.QInt8, {"WeightSymmetric": True, "QDQKeepRemovableActivations": True}),
    # TensorRT's zero is always 0; it takes weights through a pair of operations too, and biases in floating point.
    "tensorrt": (
        QuantType.QInt8,
        {"WeightSymmetric": True, "ActivationSymmetric": True, "AddQDQPairToWeight": True, "QuantizeBias": False},
    ),
}


class Engine:
    """Quantises ONNX files: weights per output channel, activations per tensor, ranges from images.

    Args:
        runtime: the runtime of the files, ``onnxruntime``, ``litert`` or ``tensorrt``.
        saturates: whether ONNX Runtime's sums of two products may overflow 16 bits, as on x86 without VNNI. Its weights
            then have 7 bits: those of 8 were off by 0.145 of a test network's largest output, in place of 0.013.
    """

    def __init__(self, runtime: str, *, saturates: bool = False) -> None:
        logging.disable(logging.WARNING)
        self._activation, self._options = _STYLES[runtime]
        self._narrow = saturates and runtime == "onnxruntime"

    def operations(self, source: str) -> list[tuple[str, bool]]:
        """Return a network's operations in order, each with whether it has weights to quantise."""
        return [(node.name, _heavy(node) and not _refused(node)) for node in onnx.load(source).graph.node]

    def quantize(self, source: str, images: str, to: str, keep: Sequence[str] = ()) -> str:
        """Quantise a network.

        Args:
            source: the network's ONNX file.
            images: a ``.npy`` file of inputs, shape (inputs, *input shape).
            to: where to, without suffix.
            keep: operations that stay in floating point.

        Returns:
            The path of the new file.
        """
        network = onnx.load(source)
        path = f"{to}.onnx"
        quantize_static(
            network,
            path,
            _Reader(network.graph.input[0].name, np.load(images)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=self._narrow,
            activation_type=self._activation,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*_behind(network), *(node.name for node in network.graph.node if _refused(node)), *keep],
            extra_options=dict(self._options),
        )
        return path


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Iterates over the calibration inputs."""

    def __init__(self, name: str, images: npt.NDArray[np.float32]) -> None:
        self._inputs = iter([{name: image} for image in images])

    def get_next(self) -> Mapping[str, Any] | None:
        """Return the next input by its name."""
        return next(self._inputs, None)


def _behind(network: Any) -> list[str]:
    """Return the operations that no convolution or matrix product follows: a detection head's arithmetic.

    They stay in floating point: box coordinates and class scores are joined in one tensor, and a common scale would
    round every score to 0.
    """
    users: dict[str, list[Any]] = {}
    for node in network.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    leads: dict[str, bool] = {}
    for node in reversed(network.graph.node):  # users come after what they use
        following = [user for name in node.output for user in users.get(name, [])]
        leads[node.name] = any(_heavy(user) or leads[user.name] for user in following)
    return [node.name for node in network.graph.node if not leads[node.name] and not _heavy(node)]


def _heavy(node: Any) -> bool:
    return node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _refused(node: Any) -> bool:
    """Return whether ONNX Runtime cannot quantise an operation: a grouped transposed convolution.

    It finds a scale for each output of one group, and wants one for each output of all groups.
    """
    return node.op_type == "ConvTranspose" and any(one.name == "group" and one.i > 1 for one in node.attribute)
