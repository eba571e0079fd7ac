"""LiteRT, once TensorFlow Lite, on a CPU with XNNPACK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend


class LiteRtBackend(SubprocessBackend):
    """LiteRT's interpreter; networks are translated from ONNX by `autoprune.runtimes.tflite`."""

    @property
    def runtime(self) -> EngineSpec:
        """LiteRT."""
        packages, options = ("onnx", "ai_edge_litert"), {"threads": self.settings.threads}
        return EngineSpec("The runtime litert", ENGINES / "lite_rt.py", packages, "litert", options)

    def translated(self, path: Path) -> Path:
        """Return the file made of an ONNX file; see ``SubprocessBackend``."""
        to = path.with_suffix(".tflite")
        self.convert(path, to)
        return to

    def convert(self, source: Path, to: Path) -> None:
        """Write an ONNX file as a ``.tflite`` file; see ``FileBackend``."""
        from autoprune.runtimes.tflite import convert  # late: onnx and LiteRT belong to an extra

        convert(source, to)

    def quantize(self, source: Path, images: Path, *, to: Path, keep: Sequence[str] = ()) -> Path:
        """Quantise an ONNX file, and translate it; see ``SubprocessBackend``."""
        quantized = super().quantize(source, images, to=to, keep=keep)
        path = Path(f"{to}.tflite")
        self.convert(quantized, path)
        quantized.unlink()
        return path
