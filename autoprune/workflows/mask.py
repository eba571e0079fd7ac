"""``autoprune mask``: single weights set to zero, the others fine-tuned; the network keeps its shape."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.choices import Granularity, Scope
from autoprune.config import MaskConfig
from autoprune.errors import ModelError
from autoprune.latency import LatencyMeter, PairedTiming
from autoprune.listener import Listener, step_bar
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.report.sections import publish
from autoprune.results import Result, Stage
from autoprune.runtimes import fingerprint, open_backend
from autoprune.training.extensions.masking import (
    Masking,
    Masks,
    apply_masks,
    check_masks,
    convolution_weights,
    has_two_of_four,
    largest_of_layer,
    largest_of_network,
    two_of_four,
)
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.measuring import settings_of
from autoprune.workflows.network import choose_device, pin_threads
from autoprune.workflows.tuning import Tuning, trained

_SPEED: Mapping[Granularity, str] = {
    Granularity.TWO_OF_FOUR: (
        "2:4 is faster on NVIDIA GPUs from Ampere on, where TensorRT finds a sparse kernel for a layer that beats its "
        "dense one; no other runtime makes use of it."
    ),
    Granularity.UNSTRUCTURED: "No runtime here makes use of unstructured zeros: only the compressed file gets smaller.",
}


def run(config: MaskConfig, listener: Listener, caller: Caller) -> Finished:
    """Mask, fine-tune, check and measure; write ``model`` and ``mask.json``.

    Raises:
        ModelError: no layer can have the pattern.
        TrainingError: the training failed, or the checkpoint is not zero where it must be.
    """
    with RunFolder.open("mask", config, caller) as folder:
        listener.stages(stages.of_masking(config))
        listener.stage(stages.OPEN)
        pin_threads(config.threads_here, folder, listener)
        options: dict[str, Any] = {"device": choose_device(config.device), "trust": config.trust_checkpoint}
        adapter = open_adapter(config.model, data=config.data, image_size=config.imgsz, **options)
        meter = _meter(config, adapter)  # before the training: what is missing is reported now
        masks = _masks(config, adapter, listener)
        path = adapter.checkpoint(folder.path, "model")
        listener.stage(stages.FINETUNE)
        if not path.exists():
            adapter.save(_tuned(config, adapter, masks, folder.path, listener), path)
        module = adapter.reopen(path)
        check_masks(module, masks)
        listener.stage(stages.LATENCY)
        timing = _timed(config, adapter, module, meter, folder)
        listener.stage(stages.RESULT)
        result = Result(
            command=folder.command,
            title=f"{adapter.name} at {adapter.image_size} px, {config.granularity.value}",
            metric_names=adapter.metric_names,
            stages={
                "given": _stage("given", adapter.module, adapter, folder, timing.dense.to_json()),
                "masked": _stage("masked", module, adapter, folder, timing.candidate.to_json(), paired=timing),
            },
            figures={"masked_layers": len(masks), "settings": fingerprint(meter.settings)},
            environment=environment(),
        )
        publish(result, folder.path / "mask.json", listener)
    if timing.note is not None:
        listener.warn(f"Latency: {timing.note}")
    listener.note(f"The masked network is {path}. {_SPEED[config.granularity]}")
    return Finished(folder.path)


def _stage(
    name: str,
    module: nn.Module,
    adapter: Adapter,
    folder: RunFolder,
    latency: Mapping[str, Any],
    *,
    paired: PairedTiming | None = None,
) -> Stage:
    """Measure a network, its metrics once in a run; ``paired`` is its time next to the given network's.

    Of the details ``zeros`` is the share of its convolutions' weights that are zero, ``two_of_four`` how many of its
    ``convolutions`` have the pattern 2:4 once batch norms and branches are folded, and ``compressed_bytes`` the size
    of all tensors in half precision, as a checkpoint holds them, compressed by zlib.
    """
    weights = convolution_weights(module).values()
    deployed = convolution_weights(adapter.deployable(module)).values()
    ratio = {} if paired is None else {"paired_ratio": {"ratio": paired.ratio, "spread": paired.spread}}
    return Stage(
        folder.validated(name, module, adapter),
        {"size": adapter.checkpoint_size(module)},
        {"latency": latency},
        {
            "zeros": 1 - sum(int(one.count_nonzero()) for one in weights) / sum(one.numel() for one in weights),
            "convolutions": len(deployed),
            "two_of_four": sum(map(has_two_of_four, deployed)),
            "compressed_bytes": len(zlib.compress(_content(module))),
            **ratio,
        },
    )


def _content(module: nn.Module) -> bytes:
    """Return all tensors of a network, floats in half precision, one after the other."""
    tensors = (tensor.cpu() for tensor in module.state_dict().values())
    return b"".join((one.half() if one.is_floating_point() else one).numpy().tobytes() for one in tensors)


def _masks(config: MaskConfig, adapter: Adapter, listener: Listener) -> Masks:
    """Choose the weights that stay, and tell which layers cannot have the pattern."""
    weights = convolution_weights(adapter.module)
    if config.granularity is Granularity.UNSTRUCTURED:
        return (largest_of_layer if config.scope is Scope.LAYER else largest_of_network)(weights, config.share)
    masks = two_of_four(weights)
    if not masks:
        raise ModelError(
            f"`granularity` 2:4 needs convolutions whose input channels are a multiple of 4, and {adapter.name} has "
            "none; prune to such widths, which `round_to` 8 gives"
        )
    left_out = [name.removesuffix(".weight") for name in weights if name not in masks]
    if left_out:
        listener.note(
            f"{len(left_out)} of {len(weights)} convolutions keep all weights, because their input channels are no "
            f"multiple of 4: {', '.join(left_out)}."
        )
    return masks


def _tuned(config: MaskConfig, adapter: Adapter, masks: Masks, folder: Path, listener: Listener) -> nn.Module:
    """Fine-tune what the masks leave; go on where an earlier process stopped."""
    module = deepcopy(adapter.module)
    apply_masks(module, masks)
    tuning = Tuning(epochs=config.epochs, lr_scale=config.lr_scale, batch=config.batch, seed=config.seed)
    return trained(
        adapter,
        module,
        folder / "finetune",
        label="Fine-tuning",
        tuning=tuning,
        listener=listener,
        extensions=[Masking(masks)],
    ).module


def _meter(config: MaskConfig, adapter: Adapter) -> LatencyMeter:
    """Return what times a network next to the given one.

    Raises:
        DeviceError: the runtime or the device is not here.
    """
    settings = settings_of("latency", config, adapter.input_shape)
    open_backend(settings)
    return LatencyMeter(adapter.deployable(adapter.module, with_nms=config.with_nms), settings)


def _timed(
    config: MaskConfig, adapter: Adapter, module: nn.Module, meter: LatencyMeter, folder: RunFolder
) -> PairedTiming:
    """Time the masked network against the given one, run for run; once in a run."""

    def measure() -> dict[str, Any]:
        with step_bar("Timing", 1) as advance:
            timing = meter.measure(lambda: adapter.deployable(module, with_nms=config.with_nms), "masked")
            advance(1)
            return timing.to_json()

    return PairedTiming.from_json(folder.once("latency", measure))
