"""Networks written as other runtimes read or convert them: ONNX, TorchScript, programs of ``torch.export``."""

from __future__ import annotations

import copy
import importlib.util
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree

from autoprune.errors import DeviceError, ModelError, first_line
from autoprune.io.files import saying_why
from autoprune.io.installed import install_extra
from autoprune.structure.graph.program import export_program

OPSET = 17
"""The newest version of ONNX's operators that all runtimes support."""


class _Exported(nn.Module):
    """Wraps a network to return its output's tensors as a flat tuple."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = _pytree.tree_leaves(self.module(image))
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def export_onnx(
    module: nn.Module,
    shape: tuple[int, ...],
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    opset: int = OPSET,
) -> None:
    """Write an eval-mode network as ONNX with a fixed input shape; the module is not modified.

    Args:
        module: the network; its outputs become those of the file, flattened.
        shape: shape of its input.
        path: where to.
        dtype: number format of weights, input and outputs in the file.
        device: where the network runs while it is traced.
        opset: version of ONNX's operators.

    Raises:
        DeviceError: the package onnx is missing, or ONNX has no such operation.
    """
    if importlib.util.find_spec("onnx") is None:
        raise DeviceError(f"Exporting a network needs the package onnx: {install_extra('onnxruntime')}")
    # A network that was made in inference mode cannot be traced in it.
    with saying_why(path), warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: shape arithmetic becomes constant on purpose
        copied = copy.deepcopy(module).to(device, dtype).eval()
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        copied(image)  # imports and caches of a first run must not be traced
        try:
            torch.onnx.export(
                _Exported(copied),
                (image,),
                path,
                input_names=["image"],
                opset_version=opset,
                dynamo=False,  # the newer exporter takes several times as long
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise DeviceError(_refusal(error, opset)) from error


def export_script(module: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Write an eval-mode network as TorchScript, in float32 on the CPU; the module is not modified.

    Raises:
        DeviceError: the network cannot be traced.
    """
    with saying_why(path), warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: shape arithmetic becomes constant on purpose
        copied = copy.deepcopy(module).to("cpu", torch.float32).eval()
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        copied(image)
        try:
            traced = torch.jit.trace(_Exported(copied), image)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            reason = first_line(error)
            raise DeviceError(f"A network must be traceable for a benchmark command, and is not ({reason})") from error
        torch.jit.save(traced, str(path))


def export_pt2(module: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Write an eval-mode network as a program of ``torch.export``, in float32 on the CPU; the module is not modified.

    Raises:
        DeviceError: the network cannot be exported.
    """
    with saying_why(path), warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # on saving: of constants that are views
        copied = copy.deepcopy(module).to("cpu", torch.float32).eval()
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        copied(image)  # caches of a first run must not be exported
        rule = f"torch.export must be able to export a network for ExecuTorch; {type(module).__name__}"
        try:
            program = export_program(_Exported(copied), image, rule)
        except ModelError as error:
            raise DeviceError(f"{error}; use another runtime (`runtime`, of an export `format`)") from error
        torch.export.save(program, path)


WRITERS: Mapping[str, Callable[[nn.Module, tuple[int, ...], Path], None]] = {
    "onnx": export_onnx,
    "torchscript": export_script,
    "pt2": export_pt2,
}
"""What writes a network for the input shape to a path, by what an `autoprune.formats.FormatSpec` calls it."""


def named_operation(error: Exception) -> str | None:
    """Return the operation, as torch names it, that ONNX lacks according to torch's error; None if it names none."""
    named = re.search(r"operator '([^']+)'", str(error))
    return named[1] if named else None


def _refusal(error: Exception, opset: int) -> str:
    """Return one sentence on the operation that cannot be exported."""
    named = named_operation(error)
    what = f"has no operation for {named}" if named else f"does not take it ({first_line(error)})"
    return (
        f"A network must be expressible in ONNX (opset {opset}) to run outside of torch, and ONNX {what}; "
        "use `runtime` torch or torch-compile"
    )
