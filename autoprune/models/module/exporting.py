"""Networks of any class as files of a runtime."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree

from autoprune.choices import ExportFormat
from autoprune.errors import ConfigError, ModelError
from autoprune.models._base import Convert, ExportSettings
from autoprune.runtimes._base import FULL
from autoprune.runtimes.exported import export_onnx


class FirstOutput(nn.Module):
    """A network that returns the first tensor of its output, whatever structure that has."""

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
    """Write a network as it is deployed into an empty folder.

    Args:
        module: in eval mode, on the device where it is traced.
        folder: where to.
        settings: what is written.
        shape: of its input.
        convert: makes an ONNX file one of OpenVINO or TensorRT.

    Returns:
        ``model.onnx``, ``model.torchscript`` or the folder ``model_openvino_model``.

    Raises:
        ConfigError: open shapes or TensorRT are asked for.
        ModelError: the network cannot be traced.
        DeviceError: ONNX has no such operation.
    """
    if settings.dynamic:
        raise ConfigError("A module is exported with the shape of its example; leave `dynamic` out")
    if settings.file_format is ExportFormat.TENSORRT:
        raise ConfigError("A module is exported as onnx, torchscript or openvino; TensorRT reads the ONNX file")
    device = next(module.parameters()).device
    dtype = torch.float16 if settings.half else torch.float32
    if settings.file_format is ExportFormat.TORCHSCRIPT:
        return _write_script(module.to(dtype), folder / "model.torchscript", torch.zeros(shape, dtype=dtype).to(device))
    path = folder / "model.onnx"
    export_onnx(module, shape, path, dtype=dtype, device=str(device))
    if settings.file_format is ExportFormat.ONNX:
        return path
    target = folder / "model_openvino_model"
    target.mkdir()
    convert(path, target / "model.xml")
    path.unlink()
    return target


def _write_script(module: nn.Module, path: Path, image: torch.Tensor) -> Path:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: shape arithmetic is meant to become constant
        try:
            traced = torch.jit.trace(module, image)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if any(sign in str(error) for sign in FULL):
                raise
            reason = str(error).splitlines()[0]
            raise ModelError(f"The network must be traceable by TorchScript, and is not ({reason})") from error
        torch.jit.save(traced, str(path))
    return path
