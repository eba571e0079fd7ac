"""Translates the operations of an ONNX file to TensorFlow Lite's."""

from __future__ import annotations

import ast
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.arrays import AnyArray
from autoprune.errors import DeviceError
from autoprune.runtimes.tflite.file import File
from autoprune.runtimes.tflite.network import read
from autoprune.runtimes.tflite.operations import OPERATIONS, Untranslatable
from autoprune.runtimes.tflite.tensors import Tensors

SCALES = "output_scale"
"""Key of the metadata: what the channels of the first output are to be multiplied by."""

_NO_TEXTS = ("stride", "batch", "imgsz", "names", "channels", "args", "kpt_shape", "end2end")
"""Keys of Ultralytics' metadata whose values are not texts, though its ONNX files have them as such."""


def convert(source: Path, to: Path) -> None:
    """Write an ONNX file as a TensorFlow Lite file; one with pairs that quantise, in int8.

    The input stays as it is, with the channels in front. Box coordinates of Ultralytics' detectors are divided by the
    input's size, as Ultralytics expects of the format; the file's metadata says so.

    Raises:
        DeviceError: there is no translation of an operation; it is named.
    """
    network = read(source)
    file = File()
    tensors = Tensors(network, file)
    inputs = [tensors.add(name, integer=False, last=False) for name in network.inputs]
    for node in network.nodes:
        if all(name in network.constants for name in node.outputs):
            continue
        try:
            if node.kind not in OPERATIONS:
                raise Untranslatable("")
            OPERATIONS[node.kind](tensors, node)
        except Untranslatable as error:
            raise DeviceError(
                f"The network must be expressible in LiteRT, and there is no translation of {node.kind} "
                f"{node.name}{error}; use another runtime (`runtime`, of an export `format`)"
            ) from error
    outputs = [tensors.get(name) for name in network.outputs]
    metadata: dict[str, Any] = {**network.metadata}
    metadata.update((key, ast.literal_eval(network.metadata[key])) for key in _NO_TEXTS if key in metadata)
    scales = _scales(metadata, tensors.shape(network.inputs[0]), tensors.shape(network.outputs[0]))
    if scales is not None:
        metadata[SCALES] = scales.tolist()
        scaled = file.tensor("boxes/scaled", tensors.shape(network.outputs[0]))
        share = file.constant("boxes/share", (1 / scales).astype(np.float32).reshape(1, -1, 1))
        file.operate("MUL", [outputs[0], share], [scaled], "Mul")
        outputs[0] = scaled
    to.write_bytes(file.pack(inputs, outputs))
    if metadata:
        with zipfile.ZipFile(to, "a", zipfile.ZIP_DEFLATED) as archive:  # behind the network, which readers ignore
            archive.writestr("metadata.json", json.dumps(metadata))


def _scales(metadata: Mapping[str, Any], image: tuple[int, ...], output: tuple[int, ...]) -> AnyArray | None:
    """Return what Ultralytics multiplies the channels of the predictions by, or None."""
    if metadata.get("task") not in ("detect", "segment", "pose", "obb") or len(output) != 3 or metadata.get("end2end"):
        return None
    height, width = image[2:]
    scales = np.ones(output[1])
    scales[:4] = width, height, width, height
    if metadata["task"] == "pose":
        first, step = 4 + len(metadata["names"]), metadata["kpt_shape"][1]
        scales[first::step], scales[first + 1 :: step] = width, height
    return scales
