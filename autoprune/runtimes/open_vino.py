"""OpenVINO on a CPU, with its latency hint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.choices import Precision
from autoprune.errors import DeviceError
from autoprune.runtimes.exported import export_onnx
from autoprune.runtimes.separate import ENGINES, Kit, SeparateBackend

_COMPUTED = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.FP16: "f16", Precision.INT8: "f32"}
_NEEDED = {Precision.FP32: "FP32", Precision.BF16: "BF16", Precision.FP16: "FP16", Precision.INT8: "INT8"}


class OpenVinoBackend(SeparateBackend):
    """OpenVINO's CPU plugin: one stream, as few milliseconds per image as it can."""

    @property
    def kit(self) -> Kit:
        """See ``SeparateBackend``."""
        return Kit(("onnx", "openvino"), "openvino", ENGINES / "open_vino.py")

    def options(self) -> Mapping[str, Any]:
        """Return threads and what floating-point operations compute in."""
        return {"threads": self.settings.threads, "precision": _COMPUTED[self.settings.precision]}

    def check(self, capabilities: list[str]) -> None:
        """Check that the CPU computes in the precision: OpenVINO would fall back to fp32 in silence."""
        precision = self.settings.precision
        if _NEEDED[precision] not in capabilities:
            raise DeviceError(
                f"OpenVINO must have instructions for --precision {precision.value} on this CPU, and has "
                f"{', '.join(sorted(set(_NEEDED.values()) & set(capabilities)))}"
            )

    def export(self, module: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
        """Write ONNX in fp32: the precision is chosen when it is compiled."""
        path = folder / "network.onnx"
        export_onnx(module, shape, path)
        return path
