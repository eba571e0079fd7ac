"""``autoprune export``: a checkpoint → a file for a runtime, compared with torch and timed there."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from autoprune.choices import Precision
from autoprune.config import ExportConfig
from autoprune.errors import ConfigError, ExportError
from autoprune.exporting import Exported, export
from autoprune.io.files import saying_why, sync_folder
from autoprune.listener import Listener
from autoprune.models import open_adapter
from autoprune.models._base import Adapter, ExportSettings
from autoprune.report.sections import publish
from autoprune.results import Result, Stage
from autoprune.runtimes import (
    FileBackend,
    MemoryFormat,
    PrecisionError,
    fingerprint,
    open_file_backend,
    runtime_settings,
)
from autoprune.runtimes.settings import image_size_of, threads_in_words
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.network import choose_device, warn_of_skipped

DIFFERS = "differs"
"""How the name of an exported network begins that is beyond the tolerance, in place of ``model``."""


def run(config: ExportConfig, listener: Listener, caller: Caller) -> Finished:
    """Export, compare and measure; write ``export.json`` and the exported network.

    Raises:
        ExportError: the exported network does not predict what torch does; it is kept under a name that says so.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    listener.stages(stages.of_exporting())
    listener.stage(stages.OPEN)
    adapter = open_adapter(
        config.model, data=config.data, image_size=config.imgsz, device=_device(config), trust=config.trust_checkpoint
    )
    if config.nms and not adapter.suppresses:
        raise ConfigError(
            f"`nms` puts suppression behind heads of Ultralytics that need it, and {adapter.name} has no such head; "
            "leave it out"
        )
    backend = _backend(config, adapter)  # refuses what it cannot run before anything is written
    with RunFolder.open("export", config, caller) as folder:
        listener.stage(stages.EXPORT)
        exported = _exported(config, adapter, backend, folder=folder.path)
        publish(_result(config, adapter, backend, exported), folder.path / "export.json", listener)
    warn_of_skipped(adapter, listener)
    if not exported.parity.real:
        noise = "noise, in which nothing is detected" if config.nms else "noise"
        listener.note(f"Compared on {noise}; with `data` it is compared on validation images and by accuracy.")
    if problems := _problems(config, adapter, exported):
        raise ExportError(
            f"The exported network must predict what torch does, and {', '.join(problems)}; it is kept as "
            f"{exported.path} to look into, use another `format`"
        )
    reader = f"; {adapter.reader} opens it" if adapter.reader and config.format.spec.stock else ""
    listener.note(f"The exported network is {exported.path}{reader}.")
    return Finished(folder.path)


def _device(config: ExportConfig) -> str:
    """Return the device to use: for ``auto`` the CPU if the format's runtime runs on nothing else."""
    only_cpu = config.device == "auto" and config.format.runtime.spec.only_cpu
    return "cpu" if only_cpu else choose_device(config.device)


def _backend(config: ExportConfig, adapter: Adapter) -> FileBackend:
    """Return what runs the exported network."""
    device, spec = str(adapter.device), config.format.spec
    try:
        settings = runtime_settings(
            device,
            image_size=image_size_of(adapter.input_shape),
            runtime=config.format.runtime,
            precision=config.precision,
            threads=config.threads,
            batch=config.batch,
            with_nms=config.nms,
        )
        # Before the runtime is opened: whether this processor computes in fp16 does not matter to the tracer.
        if not spec.write and config.precision is Precision.FP16 and device == "cpu":
            raise PrecisionError(f"A network is traced in fp16 on a GPU, got `device` cpu with `format` {spec.name}")
        return open_file_backend(replace(settings, memory_format=MemoryFormat.CONTIGUOUS), spec)
    except PrecisionError as error:
        fp32 = "leave `half` out" if config.half else "use `precision` fp32"
        on_gpu = Precision.FP16 in config.format.runtime.spec.precisions.get("cuda", ())
        raise PrecisionError(f"{error}; {'use `device` cuda, or ' if on_gpu else ''}{fp32}") from error


def _exported(config: ExportConfig, adapter: Adapter, backend: FileBackend, *, folder: Path) -> Exported:
    """Export into a hidden folder, and rename into the run's what is done."""
    with TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
        exported = export(
            adapter,
            Path(scratch),
            wanted=ExportSettings(
                config.format.spec, dynamic=config.dynamic, batch=config.batch, nms=config.nms, opset=config.opset
            ),
            backend=backend,
            real=adapter.has_images,
        )
        name = exported.path.name
        differs = _problems(config, adapter, exported)
        target = folder / (DIFFERS + name.removeprefix("model") if differs else name)
        with saying_why(target):
            exported.path.rename(target)
    sync_folder(folder)
    return replace(exported, path=target)


def _problems(config: ExportConfig, adapter: Adapter, exported: Exported) -> tuple[str, ...]:
    """Return what is beyond the tolerance."""
    return exported.parity.beyond(config.format.spec.tolerance[config.precision], adapter.metric_names[0])


def _result(config: ExportConfig, adapter: Adapter, backend: FileBackend, exported: Exported) -> Result:
    """Return the exported network next to torch's."""
    parity, settings = exported.parity, backend.settings
    allowed = config.format.spec.tolerance[config.precision]
    problems = _problems(config, adapter, exported)
    differences = {
        "score_difference": _finite(parity.difference.scores),
        "box_difference_px": _finite(parity.difference.boxes),
    }
    latencies = {"latency": exported.latency.to_json()}
    return Result(
        command="export",
        title=f"{adapter.name} at {adapter.image_size} px, {config.format.value} in {settings.precision.value} on "
        f"{settings.runtime.value}, {settings.device}, {threads_in_words(settings.threads)}"
        + ", with NMS"
        * config.nms,
        metric_names=adapter.metric_names,
        stages={
            "torch": Stage(parity.torch, {"size": adapter.checkpoint_size(adapter.module)}),
            config.format.value: Stage(parity.exported, {"size": exported.size_bytes}, latencies, differences),
        },
        figures={
            "file": exported.path.name,
            "format": config.format.value,
            "image_size": adapter.image_size.plain,
            "dynamic": config.dynamic,
            "batch": config.batch,
            "nms": config.nms,
            "parity": {
                "passed": not problems,
                "problems": list(problems),
                "images": parity.images,
                "on": "validation images" if parity.real else "noise",
                "accuracy": parity.accuracy_apart,
                "allowed": {name: _finite(most) for name, most in asdict(allowed).items()},
            },
            "settings": fingerprint(settings),
        },
        environment=environment(),
    )


def _finite(value: float) -> float | None:
    """Return a number that JSON knows: none for one that is not finite."""
    return value if math.isfinite(value) else None
