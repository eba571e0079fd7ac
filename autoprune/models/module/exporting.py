"""Export of networks of any class."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree

from autoprune.errors import ConfigError, ModelError, first_line, is_out_of_memory
from autoprune.formats import formats_where
from autoprune.models._base import Convert, ExportSettings
from autoprune.models.formats import finish
from autoprune.runtimes.exported import OPSET, export_onnx, export_pt2


class FirstOutput(nn.Module):
    """Wraps a network to return the first tensor of its output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Run the network on inputs of shape (B, channels, height, width)."""
        leaves = _pytree.tree_leaves(self.module(image))
        return next(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def write(
    module: nn.Module, folder: Path, settings: ExportSettings, *, shape: tuple[int, ...], convert: Convert
) -> Path:
    """Export a deployable network into an empty folder.

    Args:
        module: in eval mode, on the device where it is traced.
        folder: where to.
        settings: format and precision.
        shape: of its input.
        convert: converts a traced file to the runtime's own format.

    Returns:
        The format's file or folder.

    Raises:
        ConfigError: the settings ask for dynamic shapes, or for a format for detectors only.
        ModelError: the network cannot be traced.
        DeviceError: ONNX has no such operation, or ``torch.export`` refuses the network.
    """
    if settings.dynamic:
        raise ConfigError("A module is exported with the shape of its example; leave `dynamic` out")
    spec = settings.spec
    if not spec.modules:
        raise ConfigError(f"A module is exported to `format` {formats_where('modules')}, got {spec.name}")
    device = next(module.parameters()).device
    dtype = torch.float16 if settings.half else torch.float32
    traced = folder / f"model.{spec.traced}"
    if spec.traced == "torchscript":
        _write_script(module.to(dtype), traced, torch.zeros(shape, dtype=dtype).to(device))
    elif spec.traced == "pt2":
        export_pt2(module, shape, traced)
    else:
        export_onnx(module, shape, traced, dtype=dtype, device=str(device), opset=settings.opset or OPSET)
    return finish(traced, spec, {}, convert)


def _write_script(module: nn.Module, path: Path, image: torch.Tensor) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: shape arithmetic becomes constant on purpose
        try:
            traced = torch.jit.trace(module, image)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            raise ModelError(f"The network must be traceable by TorchScript, and is not ({reason})") from error
        torch.jit.save(traced, str(path))
