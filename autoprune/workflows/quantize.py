"""``autoprune quantize``: a checkpoint → an int8 file for a runtime, its most sensitive layers in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from autoprune.choices import Precision
from autoprune.config import QuantizeConfig
from autoprune.config.quantize import LEAST_IMAGES
from autoprune.errors import DataError
from autoprune.io.files import saying_why, sync_folder
from autoprune.latency.meter import REFERENCE_MEASUREMENT
from autoprune.latency.timing import Timing, time_all
from autoprune.listener import Listener, tracked
from autoprune.models import open_adapter
from autoprune.models._base import Adapter, Batch
from autoprune.quantization import Choice, DeployedResult, InFloat, Quantization, QuantizationImages, choose_precision
from autoprune.report.sections import publish
from autoprune.results import Result, Stage
from autoprune.runtimes import SubprocessBackend, fingerprint, open_backend, runtime_settings
from autoprune.runtimes.settings import has_int8_instructions, image_size_of, threads_in_words
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.network import choose_device, pin_threads, warn_of_skipped, warn_of_slow_int8
from autoprune.workflows.shown import keep_detections
from autoprune.workflows.tuning import QAT, tune_for_int8


def run(config: QuantizeConfig, listener: Listener, caller: Caller) -> Finished:
    """Quantise, compare and measure; write the quantised network and ``quantize.json``.

    Raises:
        ExportError: no quantised network loses little enough.
        DataError: the training split holds too few images.
    """
    with RunFolder.open("quantize", config, caller) as folder:
        listener.stages(stages.of_quantizing(config))
        listener.stage(stages.OPEN)
        pin_threads(config.threads, folder, listener)
        adapters = dict(_open(config))
        own, adapter = next(reversed(adapters.items()))
        backend, samples = _backend(config, adapter), _samples(config, adapter)  # what is missing is reported at once
        _warn(adapter, listener)
        if config.qat_epochs:
            listener.stage(stages.QAT)
            own, adapters[QAT] = QAT, _tuned(config, adapter, folder.path, listener)
        with TemporaryDirectory(dir=folder.path, prefix=".quantize-", suffix=".tmp") as scratch, backend.session():
            networks = [
                Quantization(one, backend, samples=samples, folder=Path(scratch), recorder=folder.journal, name=name)
                for name, one in adapters.items()
            ]
            listener.stage(stages.IN_FLOAT)
            choices = _choices(networks, config, listener)
            listener.stage(stages.RESULT)
            variants = _variants(networks, choices, backend, folder)
            if config.report:
                detectors = {
                    f"{own} fp32": networks[-1].detector(None),
                    f"{own} int8": networks[-1].detector(choices[own].in_float),
                }
                keep_detections(adapters[own], detectors, folder.path, listener)
            target = _keep(networks[-1], choices[own], folder.path / config.runtime.spec.int8_file)
        result = Result(
            command=folder.command,
            title=f"{adapter.name} at {adapter.image_size} px on {config.runtime.value}, "
            f"{threads_in_words(torch.get_num_threads())}",
            metric_names=adapter.metric_names,
            stages={one.name: one.stage() for one in variants},
            figures={**_figures(config, choices, samples), "settings": fingerprint(backend.settings)},
            environment=environment(),
        )
        publish(result, folder.path / "quantize.json", listener)
    _comment(config, choices[own], variants, adapter.metric_names[0], listener=listener)
    listener.note(f"The quantised network is {target}; YOLO opens it.")
    return Finished(folder.path)


@dataclass(frozen=True)
class _Variant:
    """One column of the table.

    Attributes:
        network: the network's name.
        precision: ``fp32`` or ``int8``.
        deployed: what it is on the validation split and on the disk.
        latency: milliseconds, taken paired with all other variants.
    """

    network: str
    precision: Precision
    deployed: DeployedResult
    latency: Timing

    @property
    def name(self) -> str:
        """What the column is called."""
        return f"{self.network} {self.precision.value}"

    def stage(self) -> Stage:
        """Return it as a stage of the result."""
        costs, latencies = {"size": self.deployed.size_bytes}, {"latency": self.latency.to_json()}
        return Stage(self.deployed.metrics, costs, latencies)


def _open(config: QuantizeConfig) -> Mapping[str, Adapter]:
    """Open the network, after the dense one if there is one, which gets the same image size."""
    options: dict[str, Any] = {"data": config.data, "trust": config.trust_checkpoint}
    adapter = open_adapter(config.model, image_size=config.imgsz, **options)
    if config.dense is None:
        return {_given(config): adapter}
    return {"dense": open_adapter(config.dense, image_size=adapter.image_size, **options), _given(config): adapter}


def _tuned(config: QuantizeConfig, adapter: Adapter, folder: Path, listener: Listener) -> Adapter:
    """Fine-tune the network for int8, on the device for that, and open what came out."""
    options: dict[str, Any] = {"data": config.data, "image_size": adapter.image_size, "trust": config.trust_checkpoint}
    trainee = open_adapter(config.model, device=choose_device(config.device), **options)
    return open_adapter(tune_for_int8(config, trainee, folder, listener), **options)


def _given(config: QuantizeConfig) -> str:
    """Return what the network of ``model`` is called."""
    return "model" if config.dense is None else "pruned"


def _backend(config: QuantizeConfig, adapter: Adapter) -> SubprocessBackend:
    """Return what quantises networks and runs them."""
    settings = runtime_settings(
        "cpu",
        image_size=image_size_of(adapter.input_shape),
        runtime=config.runtime,
        precision=Precision.INT8,
        threads=config.threads,
    )
    backend = open_backend(settings)
    assert isinstance(backend, SubprocessBackend)  # every runtime with an int8 file has one
    return backend


def _samples(config: QuantizeConfig, adapter: Adapter) -> QuantizationImages:
    """Choose training images; if there are fewer than asked for, both sets get smaller."""
    wanted = config.calibration_images + config.images
    batches = adapter.batches("train", images=wanted, batch=1, seed=config.seed)
    if len(batches) < 2 * LEAST_IMAGES:
        raise DataError(
            f"Quantisation needs at least {2 * LEAST_IMAGES} training images, half of them to calibrate on and half to "
            f"decide on, and the training split of {config.data} holds {len(batches)}; give it more images"
        )
    calibration = max(LEAST_IMAGES, len(batches) * config.calibration_images // wanted)
    calibration = min(calibration, len(batches) - LEAST_IMAGES)
    chosen, held_out = shared_out(batches, calibration, adapter.labelled)
    return QuantizationImages([adapter.inputs(batch) for batch in chosen], held_out)


def shared_out(
    batches: Sequence[Batch], count: int, labelled: Callable[[Batch], bool]
) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Split off ``count`` batches; those with labels, if there are any, are among the others too, by their share."""
    first, second = [batch for batch in batches if labelled(batch)], [batch for batch in batches if not labelled(batch)]
    share = len(first) * count // len(batches)
    return first[:share] + second[: count - share], first[share:] + second[count - share :]


def _warn(adapter: Adapter, listener: Listener) -> None:
    """Tell what was found before anything is quantised."""
    warn_of_skipped(adapter, listener)
    warn_of_slow_int8(listener)


def _choices(networks: Sequence[Quantization], config: QuantizeConfig, listener: Listener) -> Mapping[str, Choice]:
    """Find what stays in float in each network.

    Where one was tuned for int8, it must come close to what it was tuned from, all of which is quantised to compare.
    """
    given = next(one for one in networks if one.name == _given(config))
    choices = {}
    for one in networks:
        tuned_later = bool(config.qat_epochs) and one is given
        with listener.progress(f"int8 {one.name}", total=2 * len(one.groups)) as advance:
            choices[one.name] = choose_precision(
                one,
                whole=(given if one.name == QAT else one).held_out(None),
                max_drop=math.inf if tuned_later else config.max_drop,
                advance=advance,
            )
    return choices


def _variants(
    networks: Sequence[Quantization], choices: Mapping[str, Choice], backend: SubprocessBackend, folder: RunFolder
) -> Sequence[_Variant]:
    """Measure every network in float and quantised, the latencies of all of them in turn."""
    wanted: list[tuple[Quantization, Precision, InFloat]] = [
        *((one, Precision.FP32, None) for one in networks),
        *((one, Precision.INT8, choices[one.name].in_float) for one in networks),
    ]

    def measure() -> list[dict[str, Any]]:
        runners = [backend.open(one.file(in_float), backend.settings.shape) for one, _, in_float in wanted]
        config = replace(REFERENCE_MEASUREMENT, threads=backend.settings.threads)
        return [timing.to_json() for timing in time_all(runners, config)]

    deployed = [one.deployed(in_float) for one, _, in_float in tracked(wanted, "Networks")]
    timings = [Timing.from_json(values) for values in folder.once("latency", measure)]
    return [
        _Variant(one.name, precision, what, timing)
        for (one, precision, _), what, timing in zip(wanted, deployed, timings, strict=True)
    ]


def _keep(quantization: Quantization, choice: Choice, target: Path) -> Path:
    """Put the result into the run's folder, if it is not there from before."""
    if not target.exists():
        written = quantization.file(choice.in_float)
        with saying_why(target):
            written.rename(target)
        sync_folder(target.parent)
    return target


def _figures(config: QuantizeConfig, choices: Mapping[str, Choice], samples: QuantizationImages) -> dict[str, Any]:
    """Return what was decided, and on what."""
    return {
        "file": config.runtime.spec.int8_file,
        "runtime": config.runtime.value,
        "max_drop": config.max_drop,
        "calibration_images": len(samples.calibration),
        "held_out_images": len(samples.held_out),
        "networks": {name: {**asdict(choice), "in_float": choice.in_float} for name, choice in choices.items()},
        "int8_instructions": has_int8_instructions(),
    }


def _comment(
    config: QuantizeConfig, choice: Choice, variants: Sequence[_Variant], metric: str, *, listener: Listener
) -> None:
    """Tell what stays in float and whether the validation split says the same as the training images."""
    step = choice.steps[-1]
    listener.note(
        f"Kept in float: {', '.join(step.in_float) or 'nothing'}; {metric} changes by {-step.drop:+.4f} on the "
        f"training images that decided, `max_drop` is {config.max_drop:g}."
    )
    if step.in_float and not config.qat_epochs:
        listener.note("A quantisation-aware fine-tuning may bring more of it into int8: `qat_epochs` 3.")
    (whole,) = (one for one in variants if (one.network, one.precision) == (_given(config), Precision.FP32))
    drop = whole.deployed.metrics.primary - variants[-1].deployed.metrics.primary
    if drop > config.max_drop:
        listener.warn(
            f"On the validation split int8 loses {drop:.4f} of {metric}, more than `max_drop` "
            f"{config.max_drop:g}: let more `images` decide, or allow less"
        )
