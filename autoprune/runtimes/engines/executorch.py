"""ExecuTorch inside the worker process, with torch, whose programs it lowers and whose tensors it runs on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime


class Engine:
    """Loads and runs programs of ExecuTorch.

    Args:
        threads: CPU threads of one run.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        _unsafe_reset_threadpool(threads)  # unsafe for networks that are loaded, and none is; the only way
        self._runtime = Runtime.get()

    def load(self, path: str, shape: Sequence[int] | None = None) -> Any:
        """Load a ``.pte`` file, whose shape is fixed, or the one in a folder, and return it with an input."""
        file = next(Path(path).glob("*.pte"), Path(path))
        method = self._runtime.load_program(file).load_method("forward")
        sizes = method.metadata.input_tensor_meta(0).sizes()
        return method, [torch.rand(sizes, generator=torch.Generator().manual_seed(0))]

    def convert(self, source: str, to: str) -> None:
        """Lower a program of ``torch.export`` to a ``.pte`` file."""
        lowered = to_edge_transform_and_lower(
            torch.export.load(source),
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),  # `_check` names the layer
        ).to_executorch()
        self._check(lowered.exported_program())
        Path(to).write_bytes(lowered.buffer)

    def run(self, network: Any) -> float:
        """Run once, and return the milliseconds that it took."""
        method, inputs = network
        start = time.perf_counter()
        method.execute(inputs)
        return (time.perf_counter() - start) * 1e3

    def outputs(self, network: Any, image: Any) -> list[Any]:
        """Return the outputs for an input, an array, as arrays."""
        return [output.numpy() for output in network[0].execute([torch.from_numpy(image).float()])]

    def _check(self, program: Any) -> None:
        """Check that there is a kernel for every operation that XNNPACK left."""
        known = self._runtime.operator_registry.operator_names
        for node in program.graph.nodes:
            if not isinstance(node.target, torch._ops.OpOverload):
                continue
            name = node.target.name()  # type: ignore[no-untyped-call]
            if name not in known:
                layers = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
                layer = layers[-1].removeprefix("module").removeprefix(".") if layers else ""  # in what was exported
                raise RuntimeError(f"ExecuTorch has no kernel for {name}" + f" (layer {layer})" * bool(layer))
