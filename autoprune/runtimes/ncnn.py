"""NCNN on a CPU; networks are converted by pnnx, its own converter."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from autoprune.choices import Precision
from autoprune.errors import DeviceError
from autoprune.runtimes.process import TIMEOUT
from autoprune.runtimes.settings import PrecisionError
from autoprune.runtimes.subprocess_backend import ENGINES, EngineSpec, SubprocessBackend

FILE = "model.ncnn.param"
"""What Ultralytics calls the network in the folder of the format; its weights are next to it."""


class NcnnBackend(SubprocessBackend):
    """NCNN with all its optimisations, its default."""

    @property
    def runtime(self) -> EngineSpec:
        """NCNN."""
        options = {"threads": self.settings.threads, "half": self.settings.precision is Precision.FP16}
        return EngineSpec("The runtime ncnn", ENGINES / "ncnn.py", ("onnx", "ncnn", "pnnx"), "ncnn", options)

    def check(self, capabilities: Sequence[str]) -> None:
        """Check the batch, and that the CPU computes in the precision: NCNN would fall back to fp32 in silence."""
        if self.settings.batch > 1:
            raise DeviceError(f"NCNN runs one image at a time, got `batch` {self.settings.batch}")
        if self.settings.precision.value not in capabilities:
            raise PrecisionError(
                f"NCNN on this CPU computes in {', '.join(capabilities)}, got `precision` "
                f"{self.settings.precision.value}"
            )

    def translated(self, path: Path) -> Path:
        """Return the folder of what is made of an ONNX file; see ``SubprocessBackend``."""
        folder = path.with_name("ncnn")
        folder.mkdir()
        self.convert(path, folder / FILE)
        return folder

    def convert(self, source: Path, to: Path) -> None:
        """Write an ONNX file as ``.param`` and ``.bin``; see ``FileBackend``."""
        convert(source, to, half=self.settings.precision is Precision.FP16)


def convert(source: Path, to: Path, *, half: bool = False) -> None:
    """Write an ONNX file with fixed shapes as a ``.param`` file with its ``.bin`` next to it.

    Args:
        source: the ONNX file.
        to: the ``.param`` file.
        half: whether weights are stored in fp16.

    Raises:
        DeviceError: NCNN has no layer for an operation, or the converter fails.
    """
    scratch = to.with_name("pnnx")
    scratch.mkdir()
    files = {"ncnnparam": to, "ncnnbin": to.with_suffix(".bin"), "ncnnpy": scratch / "ncnn.py"}
    files |= {f"pnnx{kind}": scratch / f"pnnx.{kind}" for kind in ("param", "bin", "py", "onnx")}
    options = [f"{key}={path.absolute()}" for key, path in files.items()]
    try:
        done = subprocess.run(
            [_converter(), str(source.absolute()), *options, f"fp16={int(half)}"],
            cwd=scratch,  # it writes files for debugging there
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(_refusal(f"pnnx has not ended after {TIMEOUT:g} s")) from error
    finally:
        shutil.rmtree(scratch)
    said = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode or not to.is_file():
        raise DeviceError(_refusal(f"pnnx ended with {done.returncode}: {said[-1] if said else 'nothing said'}"))
    foreign = _foreign(to)
    if foreign:
        raise DeviceError(_refusal(f"it has no layer for {foreign}"))


def _foreign(param: Path) -> str | None:
    """Return the first layer that pnnx left in its own or in ONNX's or torch's terms, as text; None if there is none.

    NCNN's own types are single words in capitals: ``Convolution``; others have a dot or colons: ``torch.topk``.
    """
    for line in param.read_text(encoding="utf-8").splitlines()[2:]:
        kind, name = line.split()[:2]
        if not re.fullmatch(r"[A-Z]\w*", kind):
            return f"{kind} (layer {name})"
    return None


def _refusal(reason: str) -> str:
    return (
        f"The network must be expressible in NCNN, and {reason}; use another runtime (`runtime`, of an export `format`)"
    )


def _converter() -> str:
    """Return the program in the package pnnx, whose import would load torch."""
    found = importlib.util.find_spec("pnnx")
    places = found.submodule_search_locations if found is not None else None
    program = next((path for place in places or () for path in Path(place).glob("pnnx*") if path.is_file()), None)
    if program is None:
        raise DeviceError("The package pnnx must bring its program, and does not; install it anew")
    return str(program)
