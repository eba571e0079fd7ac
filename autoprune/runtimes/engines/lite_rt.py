"""LiteRT inside the worker process."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

_SCALES = "output_scale"  # of autoprune.runtimes.tflite


class Engine:
    """Loads and runs networks of LiteRT; XNNPACK, the default, computes what it can.

    Args:
        threads: CPU threads of one run.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def load(self, path: str, shape: Sequence[int] | None = None) -> Any:
        """Load a ``.tflite`` file, whose shape is fixed, and return its interpreter, with scales of outputs."""
        interpreter = Interpreter(path, num_threads=self._threads)
        interpreter.allocate_tensors()
        wanted = interpreter.get_input_details()[0]
        interpreter.set_tensor(wanted["index"], np.random.default_rng(0).random(wanted["shape"], dtype=np.float32))
        return interpreter, _scales(path)

    def run(self, network: Any) -> float:
        """Run once, and return the milliseconds that it took."""
        interpreter, _ = network
        start = time.perf_counter()
        interpreter.invoke()
        return (time.perf_counter() - start) * 1e3

    def outputs(self, network: Any, image: Any) -> list[Any]:
        """Return the outputs for an input, an array, as arrays."""
        interpreter, scales = network
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.astype(np.float32))
        interpreter.invoke()
        found = [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]
        if scales is not None:
            found[0] = found[0] * np.array(scales, dtype=np.float32).reshape(1, -1, 1)
        return found


def _scales(path: str) -> list[float] | None:
    """Return what the channels of the first output were divided by, from the archive behind the network."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        found: list[float] | None = json.loads(archive.read("metadata.json")).get(_SCALES)
        return found
