"""Torch with its compiler, ``torch.compile``: Inductor's C++ on a CPU, its Triton on CUDA."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from autoprune.errors import DeviceError, is_out_of_memory
from autoprune.io.installed import install_package
from autoprune.runtimes._base import Backend, Calibration, Runner
from autoprune.runtimes._torch import Run, check_precision, loaded, make_runner, torch_session
from autoprune.runtimes.settings import RuntimeSettings

COMPILER = "inductor"
"""Torch's name of the compiler."""


class TorchCompileBackend(Backend):
    """Torch with networks compiled whole, for one input shape, in the compiler's default mode.

    Ultralytics deploys the default mode with ``compile=True``. The other modes try several kernels for every operation,
    which takes minutes for each of the many networks of a search. On CUDA the compiled network is not captured as a
    graph; ``cudagraph`` measures that.

    Compiling takes place in ``prepare`` and is never timed.
    """

    def __init__(self, settings: RuntimeSettings, calibration: Calibration | None = None) -> None:
        super().__init__(settings, calibration)
        check_precision(settings)
        _check_tools(settings)

    def session(self) -> AbstractContextManager[None]:
        """Pin torch's threads and run without gradients; see ``Backend``."""
        return torch_session(self.settings)

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Copy the network to the device and compile it; see ``Backend``."""

        def load() -> tuple[Run, str | None]:
            copied, image = loaded(module, shape, self.settings)
            compiled = _compiled(copied, image)
            return lambda: compiled(image), None

        with self.session():  # compiled code holds for the threads and the gradient mode that it was compiled under
            return make_runner(load, self.settings)


def _compiled(module: nn.Module, image: torch.Tensor) -> Any:
    """Return a network compiled for inputs like this one.

    Torch caches compiled variants per Python code object, eight at most, and every network of a search runs the same
    Python code. So each network gets a function with its own copy of the code: variants do not pile up, no run searches
    them, and they are freed with the function.
    """
    module(image)  # heads that store their first image's shape: else the second run would compile again

    def forward(image: torch.Tensor) -> Any:
        return module(image)

    own = FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__, closure=forward.__closure__)
    compiled = torch.compile(own, fullgraph=True, dynamic=False, backend=COMPILER)
    try:
        with _silent():
            compiled(image)
    except torch._dynamo.exc.TorchDynamoException as error:
        inner = getattr(error, "inner_exception", None)
        if isinstance(inner, Exception) and is_out_of_memory(inner):
            raise inner from error
        raise DeviceError(_refusal(error)) from error
    return compiled


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the compiler's warnings."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_tools(settings: RuntimeSettings) -> None:
    """Check that a compiler for the generated code is installed.

    Raises:
        DeviceError: it is not.
    """
    if settings.device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # late: it takes a second
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise DeviceError(
                "The runtime torch-compile needs a C++ compiler on a CPU, and finds none: install g++, name another in "
                "the environment variable CXX, or use `runtime` torch"
            ) from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise DeviceError(
                f"The runtime torch-compile needs Triton and a GPU that it supports, and {settings.device} has no "
                f"working one: {install_package('triton')}, or use `runtime` cudagraph"
            )


def _refusal(error: Exception) -> str:
    """Return one sentence on the operation that cannot be compiled."""
    inner = getattr(error, "inner_exception", error)  # of what generates code
    reason = next((line.strip() for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
    target = re.search(r"target: (\S+)", str(inner))
    stack = getattr(error, "real_stack", None)  # of what reads the Python code
    where = f" at {target[1]}" if target else f" at `{stack[-1].line}`" if stack else ""
    return (
        f"A network must compile as a whole to run on torch-compile, and torch refuses it{where} ({reason}); "
        "use `runtime` torch"
    )
