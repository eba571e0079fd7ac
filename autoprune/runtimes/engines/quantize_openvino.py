"""NNCF's static quantisation for OpenVINO, inside a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import nncf
import numpy as np
import openvino

_HEAVY = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
_NO_OPERATIONS = ("Result", "Parameter", "Constant")


class Engine:
    """Quantises ONNX files into OpenVINO's own format; ranges come from images."""

    def __init__(self) -> None:
        logging.disable(logging.WARNING)
        self._core = openvino.Core()

    def operations(self, source: str) -> list[tuple[str, bool]]:
        """Return a network's operations in order, each with whether it has weights to quantise."""
        return [
            (operation.get_friendly_name(), operation.get_type_name() in _HEAVY)
            for operation in self._core.read_model(source).get_ordered_ops()
            if operation.get_type_name() not in _NO_OPERATIONS
        ]

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
        network = self._core.read_model(source)
        inputs = list(np.load(images))
        quantized = nncf.quantize(
            network,
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,  # activations such as SiLU's are not symmetric
            subset_size=len(inputs),
            # One image is for networks that are only timed: there is nothing to correct biases by.
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=len(inputs) == 1),
            ignored_scope=nncf.IgnoredScope(names=[*_behind(network), *keep], validate=False),
        )
        path = f"{to}.xml"
        openvino.save_model(quantized, path, compress_to_fp16=False)
        return path


def _behind(network: Any) -> list[str]:
    """Return the operations that no convolution or matrix product follows; see ``quantize_onnx.py``."""
    leads: dict[str, bool] = {}
    operations = network.get_ordered_ops()
    for operation in reversed(operations):
        following = [target.get_node() for output in operation.outputs() for target in output.get_target_inputs()]
        leads[operation.get_friendly_name()] = any(
            user.get_type_name() in _HEAVY or leads[user.get_friendly_name()] for user in following
        )
    return [
        operation.get_friendly_name()
        for operation in operations
        if not leads[operation.get_friendly_name()] and operation.get_type_name() not in (*_HEAVY, *_NO_OPERATIONS)
    ]
