"""TensorRT inside the worker process; needs TensorRT 10.12 or newer, where networks are strongly typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt
from cuda.bindings import runtime as cuda


class Engine:
    """Builds and runs engines of TensorRT.

    Args:
        device: the number of the CUDA device.
        tf32: whether fp32 may be multiplied in TF32.
    """

    def __init__(self, device: int, tf32: bool) -> None:
        _checked(cuda.cudaSetDevice(device))
        self._tf32 = tf32
        self._logger = _Logger()
        self._stream = _checked(cuda.cudaStreamCreate())
        self._start, self._end = _checked(cuda.cudaEventCreate()), _checked(cuda.cudaEventCreate())

    def load(self, path: str, shape: Sequence[int] | None = None) -> Any:
        """Load an engine, built now from an ONNX file or read from one of Ultralytics', and return it.

        Args:
            path: ``.onnx``, or ``.engine``.
            shape: of its input, which engines have fixed.
        """
        plan = _plan_in(Path(path)) if path.endswith(".engine") else self._build(path)
        engine = self._made(tensorrt.Runtime(self._logger).deserialize_cuda_engine(plan))
        return _Loaded(engine, self._made(engine.create_execution_context()))

    def convert(self, source: str, to: str) -> None:
        """Build an engine from an ONNX file and write it, without any header."""
        Path(to).write_bytes(bytes(self._build(source)))

    def _build(self, path: str) -> Any:
        """Return the serialised engine of an ONNX file."""
        builder = tensorrt.Builder(self._logger)
        typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # TensorRT 11 knows nothing else
        network = builder.create_network(typed)
        parser = tensorrt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(path):
            raise RuntimeError("; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
        config = builder.create_builder_config()
        if not self._tf32:
            config.clear_flag(tensorrt.BuilderFlag.TF32)
        config.set_flag(tensorrt.BuilderFlag.SPARSE_WEIGHTS)  # looks for 2:4; others run as without it
        return self._made(builder.build_serialized_network(network, config))

    def _made(self, thing: Any) -> Any:
        """Return what TensorRT made; it gives None for what it could not make, and the reason to its logger."""
        if thing is None:
            raise RuntimeError(self._logger.last)
        return thing

    def run(self, network: Any) -> float:
        """Run once with the device idle before and after, and return the milliseconds between two events around it."""
        _checked(cuda.cudaStreamSynchronize(self._stream))
        _checked(cuda.cudaEventRecord(self._start, self._stream))
        network.enqueue(self._stream)
        _checked(cuda.cudaEventRecord(self._end, self._stream))
        _checked(cuda.cudaEventSynchronize(self._end))
        return float(_checked(cuda.cudaEventElapsedTime(self._start, self._end)))

    def outputs(self, network: Any, image: Any) -> list[Any]:
        """Return the outputs for an input, an array, as arrays."""
        network.feed(image)
        network.enqueue(self._stream)
        _checked(cuda.cudaStreamSynchronize(self._stream))
        return list(network.fetch())


class _Logger(tensorrt.ILogger):  # type: ignore[misc]
    """Keeps the last error: a failed build gives its reason only in the log."""

    def __init__(self) -> None:
        tensorrt.ILogger.__init__(self)
        self.last = "TensorRT gave no reason"

    def log(self, severity: Any, message: str) -> None:
        """Keep the message if it is an error."""
        if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
            self.last = message


class _Loaded:
    """An engine with memory for its input and outputs, filled with a random input."""

    def __init__(self, engine: Any, context: Any) -> None:
        self._engine, self._context = engine, context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._arrays = {name: np.zeros(tuple(engine.get_tensor_shape(name)), self._type(name)) for name in names}
        self._memory = {name: _checked(cuda.cudaMalloc(array.nbytes)) for name, array in self._arrays.items()}
        for name, pointer in self._memory.items():
            self._context.set_tensor_address(name, int(pointer))
        inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        self._input, self._outputs = inputs[0], [name for name in names if name not in inputs]
        self.feed(np.asarray(np.random.default_rng(0).random(self._arrays[self._input].shape)))

    def enqueue(self, stream: Any) -> None:
        """Start a run on the device."""
        if not self._context.execute_async_v3(int(stream)):
            raise RuntimeError("the engine could not be enqueued")

    def feed(self, image: npt.NDArray[Any]) -> None:
        """Copy an input to the device."""
        kept = np.ascontiguousarray(image, self._type(self._input))
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(cuda.cudaMemcpy(self._memory[self._input], kept.ctypes.data, kept.nbytes, kind))

    def fetch(self) -> list[npt.NDArray[Any]]:
        """Copy the outputs from the device."""
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name in self._outputs:
            array = self._arrays[name]
            _checked(cuda.cudaMemcpy(array.ctypes.data, self._memory[name], array.nbytes, kind))
        return [self._arrays[name] for name in self._outputs]

    def free(self) -> None:
        """Free the device's memory."""
        for pointer in self._memory.values():
            _checked(cuda.cudaFree(pointer))
        self._memory.clear()

    def _type(self, name: str) -> Any:
        return np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name)))


def _plan_in(path: Path) -> bytes:
    """Return the engine in a file of Ultralytics, after a header whose length is in the first four bytes."""
    content = path.read_bytes()
    return content[4 + int.from_bytes(content[:4], "little", signed=True) :]


def _checked(answer: tuple[Any, ...]) -> Any:
    """Return the value of a CUDA call, after a check of its status.

    Raises:
        RuntimeError: the status is an error.
    """
    status, *values = answer
    if status != cuda.cudaError_t.cudaSuccess:
        raise RuntimeError(cuda.cudaGetErrorString(status)[1].decode())
    return values[0] if values else None
