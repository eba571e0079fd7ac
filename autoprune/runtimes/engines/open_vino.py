"""OpenVINO inside the worker process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

_DEVICE = "CPU"


class Engine:
    """Compiles and runs networks of OpenVINO.

    Args:
        threads: CPU threads of one run.
        precision: format of floating-point operations, as OpenVINO names it: ``f32``, ``bf16`` or ``f16``.
    """

    def __init__(self, threads: int, precision: str) -> None:
        self._core = openvino.Core()
        self._half = precision == "f16"
        self._options = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,  # else a CPU that has bf16 computes fp32 networks in it
        }

    def capabilities(self) -> list[str]:
        """Return the number formats that the CPU computes in, e.g. ``FP32``, ``BF16``, ``INT8``."""
        return [str(name) for name in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")]

    def load(self, path: str, shape: Sequence[int] | None = None) -> Any:
        """Compile a network and return a request for it.

        Args:
            path: an ONNX or OpenVINO file, or the folder of the latter.
            shape: of the input that it is timed on, if the file's own is dynamic.
        """
        file = next(Path(path).glob("*.xml"), path)
        compiled = self._core.compile_model(self._core.read_model(file), _DEVICE, self._options)
        request = compiled.create_infer_request()
        port = compiled.input(0)
        image = np.random.default_rng(0).random(tuple(shape or port.shape)).astype(port.element_type.to_dtype())
        request.set_input_tensor(openvino.Tensor(image))
        return request

    def run(self, network: Any) -> float:
        """Run once, and return the milliseconds that it took."""
        start = time.perf_counter()
        network.start_async()
        network.wait()
        return (time.perf_counter() - start) * 1e3

    def outputs(self, network: Any, image: Any) -> list[Any]:
        """Return the outputs for an input, an array, as arrays."""
        request = network.get_compiled_model().create_infer_request()
        return list(request.infer([image]).values())

    def convert(self, source: str, to: str) -> None:
        """Write an ONNX file as an ``.xml`` with a ``.bin`` next to it, weights in half precision for f16."""
        openvino.save_model(self._core.read_model(source), to, compress_to_fp16=self._half)
