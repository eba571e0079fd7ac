"""``autoprune mask``: single weights set to zero, the others fine-tuned; the network keeps its shape."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.budget import format_amount
from autoprune.choices import Granularity, Scope
from autoprune.config import MaskConfig
from autoprune.errors import ModelError
from autoprune.latency.timing import MeasurementConfig, PairedTiming, time_pair
from autoprune.listener import Listener
from autoprune.models import open_adapter
from autoprune.models._base import Accuracy, Adapter
from autoprune.runtimes import Backend, fingerprint, open_backend, runtime_settings
from autoprune.training.extensions.masking import (
    Masking,
    Masks,
    Pattern,
    SmallestOfLayer,
    SmallestOfNetwork,
    TwoOfFour,
    apply_masks,
    check_masks,
    convolution_weights,
    has_two_of_four,
)
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.network import choose_device, pin_threads
from autoprune.workflows.stages import accuracy_rows, validated
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
        pin_threads(config.threads, folder)
        options: dict[str, Any] = {"device": choose_device(config.device), "trust": config.trust_checkpoint}
        adapter = open_adapter(config.model, data=config.data, image_size=config.imgsz, **options)
        backend = _backend(config, adapter)  # before the training: what is missing is told now
        masks = _masks(config, adapter, listener)
        path = adapter.checkpoint(folder.path, "model")
        if not path.exists():
            adapter.save(_tuned(config, adapter, masks, folder.path, listener), path)
        module = adapter.reopen(path)
        check_masks(module, masks)
        given, masked = (
            _Network.of(name, one, adapter, folder) for name, one in (("given", adapter.module), ("masked", module))
        )
        timing = _timed(config, adapter, module, backend, folder)
        report = {
            "given": asdict(given),
            "masked": asdict(masked),
            "masked_layers": len(masks),
            "latency_ms": timing.to_json(),
            "accuracy_names": asdict(adapter.accuracy_names),
            "settings": fingerprint(backend.settings),
            "environment": environment(),
        }
        folder.write("mask.json", json.dumps(report, indent=2) + "\n")
    _show(config, adapter, (given, masked), timing, listener=listener)
    listener.note(f"The masked network is {path}. {_SPEED[config.granularity]}")
    return Finished(folder.path)


@dataclass(frozen=True)
class _Network:
    """One of the two networks, measured.

    Attributes:
        accuracy: on the validation split.
        zeros: share of its convolutions' weights that are zero.
        two_of_four: how many convolutions have the pattern 2:4 once batch norms and branches are folded.
        convolutions: how many there are then.
        size_bytes: of the checkpoint.
        compressed_bytes: of all tensors in half precision, as a checkpoint holds them, compressed by zlib.
    """

    accuracy: Accuracy
    zeros: float
    two_of_four: int
    convolutions: int
    size_bytes: int
    compressed_bytes: int

    @classmethod
    def of(cls, name: str, module: nn.Module, adapter: Adapter, folder: RunFolder) -> _Network:
        """Measure a network; its accuracy once in a run."""
        weights = convolution_weights(module).values()
        deployed = convolution_weights(adapter.deployable(module)).values()
        return cls(
            accuracy=validated(name, module, adapter, folder),
            zeros=1 - sum(int(one.count_nonzero()) for one in weights) / sum(one.numel() for one in weights),
            two_of_four=sum(map(has_two_of_four, deployed)),
            convolutions=len(deployed),
            size_bytes=adapter.checkpoint_size(module),
            compressed_bytes=len(zlib.compress(_content(module))),
        )


def _content(module: nn.Module) -> bytes:
    """Return all tensors of a network, floats in half precision, one after the other."""
    tensors = (tensor.cpu() for tensor in module.state_dict().values())
    return b"".join((one.half() if one.is_floating_point() else one).numpy().tobytes() for one in tensors)


def _pattern(config: MaskConfig) -> Pattern:
    if config.granularity is Granularity.TWO_OF_FOUR:
        return TwoOfFour()
    return SmallestOfLayer(config.share) if config.scope is Scope.LAYER else SmallestOfNetwork(config.share)


def _masks(config: MaskConfig, adapter: Adapter, listener: Listener) -> Masks:
    """Choose the weights that stay, and tell which layers cannot have the pattern."""
    weights = convolution_weights(adapter.module)
    masks = _pattern(config).masks(weights)
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
        changes={},
        extensions=[Masking(masks)],
    ).module


def _backend(config: MaskConfig, adapter: Adapter) -> Backend:
    settings = runtime_settings(
        str(adapter.device),
        image_size=adapter.image_size,
        runtime=config.runtime,
        precision=config.precision,
        threads=torch.get_num_threads(),
        batch=config.runtime_batch,
        with_nms=config.with_nms,
    )
    return open_backend(settings)


def _timed(
    config: MaskConfig, adapter: Adapter, module: nn.Module, backend: Backend, folder: RunFolder
) -> PairedTiming:
    """Time the masked network against the given one, run for run; once in a run."""

    def measure() -> dict[str, Any]:
        with backend.session():
            masked, given = (
                backend.prepare(adapter.deployable(one, with_nms=config.with_nms), backend.settings.shape)
                for one in (module, adapter.module)
            )
            return time_pair(masked, given, MeasurementConfig()).to_json()

    return PairedTiming.from_json(folder.once("latency", measure))


def _show(
    config: MaskConfig, adapter: Adapter, networks: Sequence[_Network], timing: PairedTiming, *, listener: Listener
) -> None:
    """Show the two networks side by side."""
    rows = [
        *accuracy_rows([one.accuracy for one in networks], adapter.accuracy_names),
        ["zeros", *(f"{one.zeros:.1%}" for one in networks)],
        ["2:4 as deployed", *(f"{one.two_of_four} of {one.convolutions} layers" for one in networks)],
        ["checkpoint", *(format_amount("size", one.size_bytes) for one in networks)],
        ["compressed", *(format_amount("size", one.compressed_bytes) for one in networks)],
        ["latency", *(format_amount("latency", one.median) for one in (timing.dense, timing.candidate))],
        ["ratio", "1", f"{timing.ratio:.3f} ± {timing.ratio * timing.spread:.3f}"],
    ]
    title = f"{adapter.name} at {adapter.image_size} px, {config.granularity.value}"
    listener.table(title, ["", "given", "masked"], rows)
    if timing.note is not None:
        listener.warn(f"Latency: {timing.note}")
