"""``autoprune export``: a checkpoint → a file for a runtime, compared with torch and timed there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from autoprune.budget import format_amount
from autoprune.choices import ExportFormat, Precision
from autoprune.config import ExportConfig
from autoprune.errors import ConfigError, ExportError
from autoprune.exporting import TOLERANCES, Exported, Tolerance, export
from autoprune.io.files import saying_why, sync_folder
from autoprune.listener import Listener
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.runtimes import FileBackend, MemoryFormat, fingerprint, open_file_backend, runtime_settings
from autoprune.runtimes.settings import image_size_of
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.network import choose_device
from autoprune.workflows.stages import accuracy_rows

DIFFERS = "differs"
"""How the name of an exported network begins that is beyond the tolerance, in place of ``model``."""


def run(config: ExportConfig, listener: Listener, caller: Caller) -> Finished:
    """Export, compare and measure; write ``export.json`` and the exported network.

    Raises:
        ExportError: the exported network does not predict what torch does; it is kept under a name that says so.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    adapter = open_adapter(
        config.model, data=config.data, image_size=config.imgsz, device=_device(config), trust=config.trust_checkpoint
    )
    backend = _backend(config, adapter)  # refuses what it cannot run before anything is written
    with RunFolder.open("export", config, caller) as folder:
        outcome = _ExportReport(config, adapter, backend, _exported(config, adapter, backend, folder=folder.path))
        folder.write("export.json", json.dumps(outcome.to_json(), indent=2) + "\n")
    for skipped in adapter.skipped:
        listener.warn(f"Skipped {skipped}")
    outcome.show(listener)
    if outcome.problems:
        raise ExportError(
            f"The exported network must predict what torch does, and {', '.join(outcome.problems)}; it is kept as "
            f"{outcome.exported.path} to look into, use another `format`"
        )
    reader = f"; {adapter.reader} opens it" if adapter.reader else ""
    listener.note(f"The exported network is {outcome.exported.path}{reader}.")
    return Finished(folder.path)


def _device(config: ExportConfig) -> str:
    """Return the device to use: for ``auto`` the CPU where the format's runtime runs on nothing else."""
    only_cpu = list(config.format.runtime.spec.precisions) == ["cpu"]
    return "cpu" if config.device == "auto" and only_cpu else choose_device(config.device)


def _backend(config: ExportConfig, adapter: Adapter) -> FileBackend:
    """Return what runs the exported network."""
    device = str(adapter.device)
    if config.format is ExportFormat.TORCHSCRIPT and config.precision is Precision.FP16 and device == "cpu":
        raise ConfigError("TorchScript in fp16 is traced on a GPU, got `device` cpu; use `device` cuda or fp32")
    settings = runtime_settings(
        device,
        image_size=image_size_of(adapter.input_shape),
        runtime=config.format.runtime,
        precision=config.precision,
        threads=config.threads,
    )
    return open_file_backend(replace(settings, memory_format=MemoryFormat.CONTIGUOUS))


def _exported(config: ExportConfig, adapter: Adapter, backend: FileBackend, *, folder: Path) -> Exported:
    """Export into a hidden folder, and rename into the run's what is done."""
    with TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
        exported = export(
            adapter,
            Path(scratch),
            file_format=config.format,
            backend=backend,
            dynamic=config.dynamic,
            real=adapter.has_images,
        )
        name = exported.path.name
        differs = exported.parity.beyond(TOLERANCES[config.precision], adapter.accuracy_names)
        target = folder / (DIFFERS + name.removeprefix("model") if differs else name)
        with saying_why(target):
            exported.path.rename(target)
    sync_folder(folder)
    return replace(exported, path=target)


@dataclass(frozen=True)
class _ExportReport:
    """An export as it is told."""

    config: ExportConfig
    adapter: Adapter
    backend: FileBackend
    exported: Exported

    @property
    def tolerance(self) -> Tolerance:
        """How far the exported network may be from torch's."""
        return TOLERANCES[self.config.precision]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is beyond the tolerance."""
        return self.exported.parity.beyond(self.tolerance, self.adapter.accuracy_names)

    def to_json(self) -> Mapping[str, Any]:
        """Return what ``export.json`` holds."""
        exported, parity = self.exported, self.exported.parity
        return {
            "file": exported.path.name,
            "format": self.config.format.value,
            "size_bytes": exported.size_bytes,
            "checkpoint_bytes": self.adapter.checkpoint_size(self.adapter.module),
            "image_size": self.adapter.image_size,
            "dynamic": self.config.dynamic,
            "parity": {
                "passed": not self.problems,
                "problems": list(self.problems),
                "images": parity.images,
                "on": "validation images" if parity.real else "noise",
                "scores": _finite(parity.difference.scores),
                "boxes_px": _finite(parity.difference.boxes),
                "accuracy": parity.accuracy_apart,
                "allowed": {name: _finite(most) for name, most in asdict(self.tolerance).items()},
            },
            "accuracy_names": asdict(self.adapter.accuracy_names),
            "torch": None if parity.torch is None else asdict(parity.torch),
            "exported": None if parity.exported is None else asdict(parity.exported),
            "latency_ms": exported.latency.to_json(),
            "settings": fingerprint(self.backend.settings),
            "environment": environment(),
        }

    def show(self, listener: Listener) -> None:
        """Show the exported network next to torch's."""
        exported, parity, settings = self.exported, self.exported.parity, self.backend.settings
        median, p10, p90 = (
            format_amount("latency", value)
            for value in (exported.latency.median, exported.latency.p10, exported.latency.p90)
        )
        both, checkpoint = (parity.torch, parity.exported), self.adapter.checkpoint_size(self.adapter.module)
        rows = [
            *accuracy_rows(both, self.adapter.accuracy_names, digits=4),
            ["file", format_amount("size", checkpoint), format_amount("size", exported.size_bytes)],
            ["latency", "–", median],
            ["p10 to p90", "–", f"{p10} to {p90}"],
            ["largest difference of a score", "–", f"{parity.difference.scores:.2g}"],
            ["largest difference of a box", "–", f"{parity.difference.boxes:.2g} px"],
        ]
        title = (
            f"{self.adapter.name} at {self.adapter.image_size} px, {self.config.format.value} in "
            f"{settings.precision.value} on {settings.runtime.value}, {settings.device}, {settings.threads} threads"
        )
        listener.table(title, ["", "torch", self.config.format.value], rows)
        if not parity.real:
            listener.note("Compared on noise; with `data` it is compared on validation images and by accuracy.")


def _finite(value: float) -> float | None:
    """Return a number that JSON knows: none for one that is not finite."""
    return value if math.isfinite(value) else None
