"""A network and its quantised variants, written, run and measured once each; operations in groups."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch

from autoprune.formats import FORMATS, ONNX, FormatSpec
from autoprune.io.files import size_of
from autoprune.journal import Recorder
from autoprune.listener import step_bar, tracked
from autoprune.models._base import Adapter, Batch, ExportSettings, Predict, Predictions
from autoprune.results import Detection, Metrics
from autoprune.runtimes import SubprocessBackend


@dataclass(frozen=True)
class OperationGroup:
    """Operations that are quantised, or stay in float, together.

    Attributes:
        name: their stage, or branch of the head, e.g. ``model.4`` or ``model.22/cv3.0``.
        operations: their names in the exported network.
    """

    name: str
    operations: tuple[str, ...]


def group_operations(operations: Iterable[tuple[str, bool]], stages: Collection[str]) -> tuple[OperationGroup, ...]:
    """Group a network's operations: one group per stage, and one per branch of the head.

    Operations without weights in front of a group, such as a concatenation, belong to it: its layers read them.

    Args:
        operations: their names, paths as ``/model.2/cv1/conv/Conv``, in order, each with whether it has weights to
            quantise. Names that are no paths, such as constants', are in no group.
        stages: of ``Adapter.stages``.
    """
    scopes: dict[str, list[str]] = {}
    weighty: set[str] = set()
    for name, has_weights in operations:
        first, *inner = name.strip("/").split("/")
        if not inner:
            continue
        scope = first if first in stages else f"{first}/{inner[0]}"
        scopes.setdefault(scope, []).append(name)
        if has_weights:
            weighty.add(scope)
    groups: list[OperationGroup] = []
    waiting: list[str] = []
    for scope, names in scopes.items():
        waiting += names
        if scope in weighty:
            groups.append(OperationGroup(scope, tuple(waiting)))
            waiting = []
    if groups and waiting:
        groups[-1] = OperationGroup(groups[-1].name, (*groups[-1].operations, *waiting))
    return tuple(groups)


InFloat: TypeAlias = tuple[str, ...] | None
"""Names a network: the quantised one with these groups in float; None for the float one."""

_KIND = "quantize"


@dataclass(frozen=True)
class QuantizationImages:
    """Training images in two disjoint sets.

    Attributes:
        calibration: inputs for the activation ranges, each of shape (1, *input_shape).
        held_out: labelled images for the choice of layers that stay in float.
    """

    calibration: Sequence[torch.Tensor]
    held_out: Sequence[Batch]


@dataclass(frozen=True)
class DeployedResult:
    """Measurements of a network in its runtime's format.

    Attributes:
        metrics: on the validation split, every image letterboxed to the input's square.
        size_bytes: of the file, or of all files in the folder.
    """

    metrics: Metrics
    size_bytes: int


class Quantization:
    """One network and its quantised variants. Measurements are recorded and not repeated.

    Call its methods in the backend's session.

    Args:
        adapter: the network, on the CPU.
        backend: quantises for a runtime, and runs the files there.
        samples: training images.
        folder: gets a folder of the name for intermediate files.
        recorder: keeps the measurements.
        name: of the network, its key in the recorder.

    Raises:
        ModelError: (by every method) the network cannot be exported.
        DeviceError: (by every method) the quantizer or the runtime refuses the network.
    """

    def __init__(
        self,
        adapter: Adapter,
        backend: SubprocessBackend,
        *,
        samples: QuantizationImages,
        folder: Path,
        recorder: Recorder,
        name: str,
    ) -> None:
        self.name = name
        self._adapter = adapter
        self._backend = backend
        self._samples = samples
        self._folder = folder / name
        self._folder.mkdir()
        self._recorder = recorder
        self._files: dict[InFloat, Path] = {}

    @property
    def metric(self) -> str:
        """The name of the primary metric."""
        return self._adapter.metric_names[0]

    @cached_property
    def groups(self) -> tuple[OperationGroup, ...]:
        """The groups of operations."""
        stages = self._adapter.stages(self._adapter.module)
        return group_operations(self._backend.operations(self._source), stages)

    def file(self, in_float: InFloat) -> Path:
        """Return a network in the runtime's format, a file or a folder that Ultralytics opens; it is written once."""
        if in_float not in self._files:
            self._files[in_float] = self._plain() if in_float is None else self._finished(in_float)
        return self._files[in_float]

    def error(self, group: str) -> float:
        """Return the error of the predictions for held-out images, in [0, 1], if one group alone is quantised."""
        others = tuple(one.name for one in self.groups if one.name != group)

        def compare(predict: Predict) -> float:
            apart = [
                self._adapter.disagreement(expected, predict(self._adapter.inputs(batch)))
                for batch, expected in zip(tracked(self._samples.held_out, "Comparing"), self._expected, strict=True)
            ]
            return float(np.mean(apart))

        return float(self._recorded(["error", group], lambda: self._with(others, compare)))

    def held_out(self, in_float: InFloat) -> float:
        """Return a network's primary metric on the held-out training images."""

        def measure(predict: Predict) -> float:
            accuracy = self._adapter.accuracy(self._adapter.module, self._samples.held_out, predict=predict)
            return accuracy.primary

        return float(self._recorded(["held out", in_float], lambda: self._with(in_float, measure)))

    def deployed(self, in_float: InFloat) -> DeployedResult:
        """Measure a network's accuracy on the validation split and its size on the disk."""

        def measure() -> dict[str, Any]:
            path = self.file(in_float)
            found = self._adapter.validate_deployed(self._predict(path))
            return {**found.to_json(), "size_bytes": size_of(path)}

        found = self._recorded(["deployed", in_float], measure)
        return DeployedResult(Metrics.from_json(found), int(found["size_bytes"]))

    def detector(self, in_float: InFloat) -> Callable[[Batch], Sequence[Sequence[Detection]] | None]:
        """Return what detects with a network's file, see `Adapter.detections`; it is opened once it is needed."""
        opened = cache(lambda: self._predict(self.file(in_float)))
        return lambda batch: self._adapter.detections(self._adapter.module, batch, predict=opened())

    @cached_property
    def _source(self) -> Path:
        """The float network as ONNX, the input of the quantizer."""
        return self._exported(ONNX.spec)

    def _exported(self, spec: FormatSpec) -> Path:
        folder = self._folder / spec.name
        folder.mkdir()
        adapter = self._adapter
        with step_bar(f"Exporting {spec.name}", 1) as advance:
            written = adapter.export(adapter.module, folder, ExportSettings(spec), convert=self._backend.convert)
            advance(1)
        return written

    def _plain(self) -> Path:
        """Write the float network in the first of the runtime's formats."""
        spec = next(spec for spec in FORMATS if spec.runtime == self._backend.settings.runtime.value)
        return self._source if spec is ONNX.spec else self._exported(spec)

    def _finished(self, in_float: Sequence[str]) -> Path:
        """Write a quantised network; if the float one is a folder, with the other files of that."""
        plain, folder = self.file(None), self._folder / f"finished-{len(self._files)}"
        folder.mkdir()
        name = self._backend.settings.runtime.spec.int8_file
        if plain.is_file():
            return self._quantized(in_float, folder / Path(name).stem)
        (folder / name).mkdir()
        for path in plain.iterdir():
            if path.suffix not in (".xml", ".bin"):
                shutil.copy(path, folder / name)
        self._quantized(in_float, folder / name / "model")
        return folder / name

    def _quantized(self, in_float: Sequence[str], to: Path) -> Path:
        keep = [name for group in self.groups if group.name in in_float for name in group.operations]
        with step_bar("Quantising", 1) as advance:
            written = self._backend.quantize(self._source, self._images, to=to, keep=keep)
            advance(1)
        return written

    @cached_property
    def _images(self) -> Path:
        """The calibration images as a file of shape (images, 1, *input_shape)."""
        path = self._folder / "images.npy"
        np.save(path, np.stack([images.float().numpy() for images in self._samples.calibration]))
        return path

    @cached_property
    def _expected(self) -> Sequence[Predictions]:
        """The float network's predictions for the held-out images."""
        predict = self._predict(self.file(None))
        return [predict(self._adapter.inputs(batch)) for batch in self._samples.held_out]

    def _with(self, in_float: InFloat, measure: Callable[[Predict], float]) -> float:
        """Measure a network with a temporary file."""
        if in_float is None:
            return measure(self._predict(self.file(None)))
        with TemporaryDirectory(dir=self._folder) as scratch:
            return measure(self._predict(self._quantized(in_float, Path(scratch) / "int8")))

    def _predict(self, path: Path) -> Predict:
        return self._backend.open(path, self._backend.settings.shape).predict

    def _recorded(self, key: Sequence[Any], measure: Callable[[], Any]) -> Any:
        return self._recorder.once(_KIND, [self.name, *key], measure)
