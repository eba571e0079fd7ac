"""NCNN inside the worker process."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before OpenMP loads: threads that spin take others' cores

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ncnn
import numpy as np


class Engine:
    """Loads and runs networks of NCNN. NCNN has no batch dimension: it runs one image at a time.

    Args:
        threads: CPU threads of one run.
        half: whether weights and activations are fp16.
    """

    def __init__(self, threads: int, half: bool) -> None:
        self._threads = threads
        self._half = half

    def capabilities(self) -> list[str]:
        """Return the number formats that NCNN computes in on this CPU; elsewhere it ignores fp16 without a word."""
        return ["fp32", *(["fp16"] if ncnn.cpu_support_arm_asimdhp() else [])]

    def load(self, path: str, shape: Sequence[int] | None = None) -> Any:
        """Load a network and return it with an input.

        Args:
            path: the ``.param`` file, with its ``.bin`` next to it, or the folder of both.
            shape: of the input that it is timed on, (1, channels, height, width); files do not name it.
        """
        param = next(Path(path).glob("*.param"), Path(path))
        network = ncnn.Net()
        network.opt.num_threads = self._threads
        network.opt.openmp_blocktime = 0
        network.opt.use_vulkan_compute = False
        for option in ("packed", "storage", "arithmetic"):
            setattr(network.opt, f"use_fp16_{option}", self._half)
        if network.load_param(str(param)) or network.load_model(str(param.with_suffix(".bin"))):
            raise RuntimeError(f"NCNN {ncnn.__version__} cannot load {param.name}")
        image = None if shape is None else np.random.default_rng(0).random(tuple(shape)[1:], dtype=np.float32)
        return network, image

    def run(self, network: Any) -> float:
        """Run once, and return the milliseconds that it took."""
        start = time.perf_counter()
        self._extract(*network)
        return (time.perf_counter() - start) * 1e3

    def outputs(self, network: Any, image: Any) -> list[Any]:
        """Return the outputs for an input, an array, as arrays."""
        pixels = np.ascontiguousarray(image[0], dtype=np.float32)
        return [np.array(output)[None] for output in self._extract(network[0], pixels)]

    def _extract(self, network: Any, image: Any) -> list[Any]:
        """Return the outputs, named ``out0``, …, for an input, whose memory NCNN reads while it runs."""
        extractor = network.create_extractor()
        extractor.input(network.input_names()[0], ncnn.Mat(image))
        return [extractor.extract(name)[1] for name in sorted(network.output_names(), key=lambda name: int(name[3:]))]
