"""``autoprune export``: a checkpoint → a file for a runtime, compared with torch and timed there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from autoprune.budget import format_amount
from autoprune.choices import ExportFormat, Precision
from autoprune.commands.folder import RunFolder, environment
from autoprune.commands.network import choose_device
from autoprune.commands.screen import Screen
from autoprune.config import ExportConfig
from autoprune.errors import ConfigError, ExportError
from autoprune.export import TOLERANCES, Exported, Parity, export
from autoprune.files import saying_why, sync_folder
from autoprune.models import open_adapter
from autoprune.models._base import Accuracy, Adapter
from autoprune.runtimes import RUNTIMES, FileBackend, MemoryFormat, fingerprint, open_file_backend, runtime_settings
from autoprune.runtimes.settings import PRECISIONS

DIFFERS = "differs"
"""How the name of an exported network begins that is beyond the tolerance, in place of ``model``."""


def run(config: ExportConfig, screen: Screen) -> int:
    """Export, compare and measure; write ``export.json`` and the exported network.

    Raises:
        ExportError: the exported network does not predict what torch does; it is kept under a name that says so.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    adapter = open_adapter(
        config.model,
        data=config.data,
        image_size=config.imgsz,
        device=_device(config),
        trust=config.trust_checkpoint,
    )
    backend = _backend(config, adapter)
    with RunFolder.open("export", config) as folder:
        with TemporaryDirectory(dir=folder.path, prefix=".export-") as scratch:
            exported = export(
                adapter, Path(scratch), file_format=config.format, backend=backend, dynamic=config.dynamic,
                real=config.data is not None,
            )  # fmt: skip
            problems = exported.parity.beyond(TOLERANCES[config.precision])
            exported = _moved(exported, folder.path, differs=bool(problems))
        told = _told(config, exported, backend, adapter, problems)
        folder.write("export.json", json.dumps(told, indent=2) + "\n")
    for skipped in adapter.skipped:
        screen.warn(f"Skipped {skipped}")
    _show(config, exported, backend, adapter, screen)
    if problems:
        raise ExportError(
            f"The exported network must predict what torch does, and {', '.join(problems)}; it is kept as "
            f"{exported.path} to look into, use another --format"
        )
    screen.note(f"The exported network is {exported.path}, as YOLO({str(exported.path)!r}) opens it.")
    return 0


def _device(config: ExportConfig) -> str:
    """Return the device to use: for ``auto`` the CPU where the format's runtime runs on nothing else."""
    only_cpu = list(PRECISIONS[RUNTIMES[config.format]]) == ["cpu"]
    return "cpu" if config.device == "auto" and only_cpu else choose_device(config.device)


def _backend(config: ExportConfig, adapter: Adapter) -> FileBackend:
    """Return what runs the exported network; refuses what it cannot run before anything is written."""
    device = str(adapter.device)
    if config.format is ExportFormat.TORCHSCRIPT and config.precision is Precision.FP16 and device == "cpu":
        raise ConfigError("TorchScript in fp16 is traced on a GPU, got --device cpu; use --device cuda or fp32")
    settings = runtime_settings(
        device,
        image_size=adapter.image_size,
        runtime=RUNTIMES[config.format],
        precision=config.precision,
        threads=config.threads,
    )
    return open_file_backend(replace(settings, memory_format=MemoryFormat.CONTIGUOUS))


def _moved(exported: Exported, folder: Path, *, differs: bool) -> Exported:
    """Rename what was exported into the run folder."""
    name = exported.path.name
    target = folder / (DIFFERS + name.removeprefix("model") if differs else name)
    with saying_why(target):
        exported.path.rename(target)
    sync_folder(folder)
    return replace(exported, path=target)


def _told(
    config: ExportConfig, exported: Exported, backend: FileBackend, adapter: Adapter, problems: tuple[str, ...]
) -> Mapping[str, Any]:
    """Return what ``export.json`` holds."""
    parity = exported.parity
    return {
        "file": exported.path.name,
        "format": config.format.value,
        "size_bytes": exported.size_bytes,
        "checkpoint_bytes": adapter.checkpoint_size(adapter.module),
        "image_size": adapter.image_size,
        "dynamic": config.dynamic,
        "parity": {
            "passed": not problems,
            "problems": list(problems),
            "images": parity.images,
            "on": "validation images" if parity.real else "noise",
            "scores": _finite(parity.difference.scores),
            "boxes_px": _finite(parity.difference.boxes),
            "map50_95": parity.map50_95_apart,
            "allowed": {name: _finite(most) for name, most in asdict(TOLERANCES[config.precision]).items()},
        },
        "torch": _accuracy(parity.torch),
        "exported": _accuracy(parity.exported),
        "latency_ms": exported.latency.to_json(),
        "settings": fingerprint(backend.settings),
        "environment": environment(),
    }


def _finite(value: float) -> float | None:
    """Return a number that JSON knows: none for an infinite one."""
    return value if value < float("inf") else None


def _accuracy(accuracy: Accuracy | None) -> Mapping[str, float] | None:
    return None if accuracy is None else asdict(accuracy)


def _show(config: ExportConfig, exported: Exported, backend: FileBackend, adapter: Adapter, screen: Screen) -> None:
    """Show the exported network beside torch's."""
    parity, latency, settings = exported.parity, exported.latency, backend.settings
    sizes = (adapter.checkpoint_size(adapter.module), exported.size_bytes)
    milliseconds = [format_amount("latency", value) for value in (latency.median, latency.p10, latency.p90)]
    rows = [
        ["mAP50", *(_share(parity, "map50"))],
        ["mAP50-95", *(_share(parity, "map50_95"))],
        ["file", *(format_amount("size", size) for size in sizes)],
        ["latency", "–", milliseconds[0]],
        ["p10 to p90", "–", f"{milliseconds[1]} to {milliseconds[2]}"],
        ["largest difference of a score", "–", f"{parity.difference.scores:.2g}"],
        ["largest difference of a box", "–", f"{parity.difference.boxes:.2g} px"],
    ]
    title = (
        f"{adapter.name} at {adapter.image_size} px, {config.format.value} in {settings.precision.value} on "
        f"{settings.runtime.value}, {settings.device}, {settings.threads} threads"
    )
    screen.table(title, ["", "torch", config.format.value], rows)
    if not parity.real:
        screen.note("Compared on noise; with --data it is compared on validation images and by mAP.")


def _share(parity: Parity, name: str) -> list[str]:
    """Return a figure of both networks' accuracy."""
    both = (parity.torch, parity.exported)
    return ["–" if accuracy is None else f"{getattr(accuracy, name):.4f}" for accuracy in both]
