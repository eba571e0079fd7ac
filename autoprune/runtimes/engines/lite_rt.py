"""LiteRT inside the worker process."""

from __future__ import annotations

import itertools
import json
import time
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

_SCALES = "output_scale"  # of autoprune.runtimes.tflite


class Engine:
    """Interpreters of LiteRT, by number; XNNPACK, the default, computes what it can.

    Args:
        threads: CPU threads of one run.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._numbers = itertools.count()
        self._loaded: dict[int, Any] = {}

    def capabilities(self) -> list[str]:
        """Return the number formats that files may be in."""
        return ["fp32", "int8"]

    def load(self, path: str, shape: Sequence[int] | None = None) -> int:
        """Load a ``.tflite`` file, whose shape is fixed, and return its number."""
        interpreter = Interpreter(path, num_threads=self._threads)
        interpreter.allocate_tensors()
        wanted = interpreter.get_input_details()[0]
        interpreter.set_tensor(wanted["index"], np.random.default_rng(0).random(wanted["shape"], dtype=np.float32))
        number = next(self._numbers)
        self._loaded[number] = (interpreter, _scales(path))
        return number

    def run(self, number: int) -> float:
        """Run once, and return the milliseconds that it took."""
        interpreter, _ = self._loaded[number]
        start = time.perf_counter()
        interpreter.invoke()
        return (time.perf_counter() - start) * 1e3

    def outputs(self, number: int, image: str, to: str) -> int:
        """Run on the input in a ``.npy`` file, write the outputs to ``.npz`` as arr_0, …, and return how many."""
        interpreter, scales = self._loaded[number]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.load(image).astype(np.float32))
        interpreter.invoke()
        found = [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]
        if scales is not None:
            found[0] = found[0] * np.array(scales, dtype=np.float32).reshape(1, -1, 1)
        np.savez(to, *found)
        return len(found)

    def drop(self, number: int) -> None:
        """Free a network."""
        del self._loaded[number]


def _scales(path: str) -> list[float] | None:
    """Return what the channels of the first output were divided by, from the archive behind the network."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        found: list[float] | None = json.loads(archive.read("metadata.json")).get(_SCALES)
        return found
