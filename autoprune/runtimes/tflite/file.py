"""The file of a TensorFlow Lite network: tensors, operations, buffers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.arrays import AnyArray
from autoprune.runtimes.tflite.network import Scale

_ALIGNMENT = 16


class File:
    """Collects tensors and operations, in the order of computation, and packs them.

    Attributes:
        schema: TensorFlow Lite's classes.
    """

    def __init__(self) -> None:
        self.schema = schema = _schema()
        self._types = {
            np.dtype(np.float32): schema.TensorType.FLOAT32,
            np.dtype(np.int8): schema.TensorType.INT8,
            np.dtype(np.int32): schema.TensorType.INT32,
            np.dtype(np.int64): schema.TensorType.INT64,
            np.dtype(np.bool_): schema.TensorType.BOOL,
        }
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]  # by convention, buffer 0 is empty
        self._operators: list[Any] = []
        self._codes: dict[int, int] = {}

    def tensor(self, name: str, shape: Sequence[int], *, dtype: Any = np.float32, scale: Scale | None = None) -> int:
        """Add a tensor without values, and return its number."""
        one = self.schema.TensorT(
            shape=list(shape), type=self._types[np.dtype(dtype)], name=name, hasRank=True, buffer=0
        )
        if scale is not None:
            one.quantization = self.schema.QuantizationParametersT(
                scale=np.atleast_1d(scale.scale).astype(np.float32),
                zeroPoint=np.atleast_1d(scale.zero).astype(np.int64),
            )
        self._tensors.append(one)
        return len(self._tensors) - 1

    def constant(self, name: str, values: AnyArray, *, scale: Scale | None = None, axis: int = 0) -> int:
        """Add a tensor with values, scaled along an axis if there are several scales, and return its number."""
        number = self.tensor(name, values.shape, dtype=values.dtype, scale=scale)
        if scale is not None:
            self._tensors[number].quantization.quantizedDimension = axis
        self._tensors[number].buffer = len(self._buffers)
        self._buffers.append(_aligned(self.schema)(data=values.tobytes()))
        return number

    def operate(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **values: Any
    ) -> None:
        """Add an operation.

        Args:
            kind: TensorFlow Lite's name of it.
            inputs: numbers of tensors.
            outputs: numbers of tensors.
            options: name of the class of its options, without ``Options``.
            values: the options.
        """
        code = getattr(self.schema.BuiltinOperator, kind)
        one = self.schema.OperatorT(
            opcodeIndex=self._codes.setdefault(code, len(self._codes)), inputs=list(inputs), outputs=list(outputs)
        )
        if options:
            one.builtinOptionsType = getattr(self.schema.BuiltinOptions, f"{options}Options")
            one.builtinOptions = getattr(self.schema, f"{options}OptionsT")(**values)
        self._operators.append(one)

    def pack(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the file's content."""
        import flatbuffers

        schema = self.schema
        codes = [
            schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1)
            for code in self._codes
        ]
        graph = schema.SubGraphT(
            tensors=self._tensors, inputs=list(inputs), outputs=list(outputs), operators=self._operators, name="main"
        )
        model = schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=self._buffers)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


@cache
def _schema() -> Any:
    """Return LiteRT's module of the format's classes, without its package, whose import loads the runtime."""
    package = importlib.util.find_spec("ai_edge_litert")
    assert package is not None  # the backend has checked it
    assert package.origin is not None
    path = Path(package.origin).with_name("schema_py_generated.py")
    spec = importlib.util.spec_from_file_location("autoprune_tflite_schema", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _aligned(schema: Any) -> Any:
    """Return the class of buffers that start at a multiple of 16 bytes, as the format demands and BufferT forgets."""

    class Aligned(schema.BufferT):  # type: ignore[misc]  # the class is known when the package is
        def Pack(self, builder: Any) -> Any:  # the generated classes' name
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            builder.vectorNumElems = len(self.data)
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return Aligned
