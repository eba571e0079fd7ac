"""OpenVINO on a CPU, with its latency hint."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.choices import Precision
from autoprune.runtimes.settings import PrecisionError
from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend

_COMPUTED = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.FP16: "f16", Precision.INT8: "f32"}
"""Format of floating-point operations, as OpenVINO names it; int8 operations are marked in the network."""


class OpenVinoBackend(SubprocessBackend):
    """OpenVINO's CPU plugin: one stream, as few milliseconds per image as it can."""

    @property
    def runtime(self) -> EngineSpec:
        """OpenVINO."""
        options = {"threads": self.settings.threads, "precision": _COMPUTED[self.settings.precision]}
        return EngineSpec("The runtime openvino", ENGINES / "open_vino.py", ("onnx", "openvino"), "openvino", options)

    @property
    def quantizer(self) -> EngineSpec:
        """NNCF, which imports torch if it is installed."""
        packages = ("openvino", "nncf")
        return EngineSpec("Quantisation for openvino", ENGINES / "quantize_openvino.py", packages, "openvino-int8")

    def check(self, capabilities: Sequence[str]) -> None:
        """Check that the CPU computes in the precision: OpenVINO would fall back to fp32 in silence."""
        wanted = self.settings.precision.value.upper()
        if wanted not in capabilities:
            where = self.settings.device if self.settings.on_board else "this CPU"
            there = [one.value for one in _COMPUTED if one.value.upper() in capabilities]
            raise PrecisionError(
                f"OpenVINO on {where} computes in {', '.join(there)}, got `precision` {self.settings.precision.value}"
            )
