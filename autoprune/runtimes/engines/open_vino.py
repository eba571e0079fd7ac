"""OpenVINO inside the worker process."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import openvino

_DEVICE = "CPU"


class Engine:
    """Compiled networks of OpenVINO, by number.

    Args:
        threads: CPU threads of one run.
        precision: what floating-point operations compute in, as OpenVINO names it: ``f32``, ``bf16`` or ``f16``.
    """

    def __init__(self, threads: int, precision: str) -> None:
        self._core = openvino.Core()
        self._options = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,  # else a CPU that has bf16 computes fp32 networks in it
        }
        self._numbers = itertools.count()
        self._loaded: dict[int, Any] = {}

    def capabilities(self) -> list[str]:
        """Return the number formats that the CPU computes in, e.g. ``FP32``, ``BF16``, ``INT8``."""
        return [str(name) for name in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")]

    def load(self, path: str) -> int:
        """Compile an ONNX or OpenVINO file and return its number."""
        compiled = self._core.compile_model(self._core.read_model(path), _DEVICE, self._options)
        request = compiled.create_infer_request()
        port = compiled.input(0)
        image = np.random.default_rng(0).random(tuple(port.shape)).astype(port.element_type.to_dtype())
        request.set_input_tensor(openvino.Tensor(image))
        number = next(self._numbers)
        self._loaded[number] = request
        return number

    def run(self, number: int) -> float:
        """Run once, and return the milliseconds that it took."""
        request = self._loaded[number]
        start = time.perf_counter()
        request.start_async()
        request.wait()
        return (time.perf_counter() - start) * 1e3

    def outputs(self, number: int, image: str, to: str) -> int:
        """Run on the input in a ``.npy`` file, write the outputs to ``.npz`` as arr_0, …, and return how many."""
        request = self._loaded[number].get_compiled_model().create_infer_request()
        found = list(request.infer([np.load(image)]).values())
        np.savez(to, *found)
        return len(found)

    def drop(self, number: int) -> None:
        """Forget a network."""
        del self._loaded[number]
