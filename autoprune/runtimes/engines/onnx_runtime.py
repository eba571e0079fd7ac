"""ONNX Runtime inside the worker process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class Engine:
    """Loads and runs networks of ONNX Runtime.

    Args:
        threads: CPU threads inside an operation; operations run one after another.
        device: ``cpu``, or the number of a CUDA device.
        tf32: whether CUDA may multiply fp32 in TF32.
    """

    def __init__(self, threads: int, device: str, tf32: bool) -> None:
        onnxruntime.set_default_logger_severity(3)
        self._threads = threads
        self._providers: list[Any] = ["CPUExecutionProvider"]
        self._device = ("cpu", 0) if device == "cpu" else ("cuda", int(device))
        if device != "cpu":
            onnxruntime.preload_dlls()  # CUDA's libraries from where pip puts them, e.g. for torch
            options = {"device_id": int(device), "use_tf32": str(int(tf32))}
            self._providers.insert(0, ("CUDAExecutionProvider", options))

    def capabilities(self) -> list[str]:
        """Return the names of the execution providers that this build of the runtime has."""
        return [str(name) for name in onnxruntime.get_available_providers()]

    def load(self, path: str, shape: Sequence[int] | None = None) -> Any:
        """Load an ONNX file and return its session, bound to an input.

        Args:
            path: the file.
            shape: of the input that it is timed on, if the file's own is dynamic.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the core that another thread needs: 28–48 ms instead of 22.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=self._providers)
        taken = session.get_providers()[0]
        wanted = self._providers[0] if isinstance(self._providers[0], str) else self._providers[0][0]
        if taken != wanted:  # the runtime falls back in silence, e.g. if a CUDA library is missing
            raise RuntimeError(f"{wanted} did not start, {taken} took its place")
        return session, *self._bound(session, shape)

    def run(self, network: Any) -> float:
        """Run once, and return the milliseconds that it took; input and outputs stay on the device."""
        session, binding, _ = network
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter() - start) * 1e3

    def outputs(self, network: Any, image: Any) -> list[Any]:
        """Return the outputs for an input, an array, as arrays."""
        session = network[0]
        wanted = session.get_inputs()[0]
        return list(session.run(None, {wanted.name: image.astype(_TYPES[wanted.type], copy=False)}))

    def _bound(self, session: Any, shape: Sequence[int] | None) -> tuple[Any, Any]:
        """Return the session's binding to a random input on the device, and the input itself."""
        wanted = session.get_inputs()[0]
        image = np.random.default_rng(0).random(shape or wanted.shape).astype(_TYPES[wanted.type])
        value = onnxruntime.OrtValue.ortvalue_from_numpy(image, *self._device)
        binding = session.io_binding()
        binding.bind_ortvalue_input(wanted.name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, *self._device)
        return binding, value
