"""One network and its quantised variants: written, run and measured, each once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch

from autoprune.formats import FORMATS, ONNX, FormatSpec
from autoprune.io.files import size_of
from autoprune.journal import Recorder
from autoprune.models._base import Adapter, Batch, ExportSettings, Predict, Predictions
from autoprune.quantization.groups import Group, group_operations
from autoprune.results import Metrics
from autoprune.runtimes import SubprocessBackend

InFloat: TypeAlias = tuple[str, ...] | None
"""Which network is meant: the quantised one with these groups in float, or where None the float one."""

_KIND = "quantize"


@dataclass(frozen=True)
class Samples:
    """Training images, each in one of the two sets only.

    Attributes:
        calibration: inputs that ranges are found on, each of shape (1, *input_shape).
        held_out: labelled images that decide which layers stay in float.
    """

    calibration: Sequence[torch.Tensor]
    held_out: Sequence[Batch]


@dataclass(frozen=True)
class Deployed:
    """A network in its runtime's format.

    Attributes:
        accuracy: on the validation split, every image letterboxed to the input's square.
        size_bytes: of the file, or of all files in the folder.
    """

    metrics: Metrics
    size_bytes: int


class Quantization:
    """One network and its quantised variants. What was measured is in the recorder, and not measured again.

    Its methods are called in the backend's session.

    Args:
        adapter: the network, on the CPU.
        backend: quantises for a runtime, and runs the files there.
        samples: training images.
        folder: where a folder of the name is made, for files that are needed meanwhile.
        recorder: where measurements are kept.
        name: the network's, which tells it from others in the recorder.

    Raises:
        ModelError: (by every method) the network cannot be exported.
        DeviceError: (by every method) what quantises or runs it refuses the network.
    """

    def __init__(
        self,
        adapter: Adapter,
        backend: SubprocessBackend,
        *,
        samples: Samples,
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
    def groups(self) -> tuple[Group, ...]:
        """What stays in float or is quantised as one."""
        stages = self._adapter.stages(self._adapter.module)
        return group_operations(self._backend.operations(self._source), stages)

    def file(self, in_float: InFloat) -> Path:
        """Return a network in the runtime's format, a file or a folder that Ultralytics opens; written once."""
        if in_float not in self._files:
            self._files[in_float] = self._plain() if in_float is None else self._finished(in_float)
        return self._files[in_float]

    def error(self, group: str) -> float:
        """Return how far the predictions for held-out images are off where one group alone is quantised, in [0, 1]."""
        others = tuple(one.name for one in self.groups if one.name != group)

        def compare(predict: Predict) -> float:
            apart = [
                self._adapter.disagreement(expected, predict(self._adapter.inputs(batch)))
                for batch, expected in zip(self._samples.held_out, self._expected, strict=True)
            ]
            return float(np.mean(apart))

        return float(self._recorded(["error", group], lambda: self._with(others, compare)))

    def held_out(self, in_float: InFloat) -> float:
        """Return a network's primary metric on the held-out training images."""

        def measure(predict: Predict) -> float:
            accuracy = self._adapter.accuracy(self._adapter.module, self._samples.held_out, predict=predict)
            return accuracy.primary

        return float(self._recorded(["held out", in_float], lambda: self._with(in_float, measure)))

    def deployed(self, in_float: InFloat) -> Deployed:
        """Return what a network is on the validation split and on the disk."""

        def measure() -> dict[str, Any]:
            path = self.file(in_float)
            found = self._adapter.validate_deployed(self._predict(path))
            return {**found.to_json(), "size_bytes": size_of(path)}

        found = self._recorded(["deployed", in_float], measure)
        return Deployed(Metrics.from_json(found), int(found["size_bytes"]))

    @cached_property
    def _source(self) -> Path:
        """The float network as ONNX, which what quantises reads."""
        return self._exported(ONNX.spec)

    def _exported(self, spec: FormatSpec) -> Path:
        folder = self._folder / spec.name
        folder.mkdir()
        adapter = self._adapter
        return adapter.export(adapter.module, folder, ExportSettings(spec), convert=self._backend.convert)

    def _plain(self) -> Path:
        """The float network in the runtime's format, the first of them."""
        spec = next(spec for spec in FORMATS if spec.runtime == self._backend.settings.runtime.value)
        return self._source if spec is ONNX.spec else self._exported(spec)

    def _finished(self, in_float: Sequence[str]) -> Path:
        """Write a quantised network, in a folder with what lies next to the float one where that is in one."""
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
        return self._backend.quantize(self._source, self._images, to=to, keep=keep)

    @cached_property
    def _images(self) -> Path:
        """The calibration images as a file of shape (images, 1, *input_shape)."""
        path = self._folder / "images.npy"
        np.save(path, np.stack([images.float().numpy() for images in self._samples.calibration]))
        return path

    @cached_property
    def _expected(self) -> Sequence[Predictions]:
        """What the float network predicts for the held-out images."""
        predict = self._predict(self.file(None))
        return [predict(self._adapter.inputs(batch)) for batch in self._samples.held_out]

    def _with(self, in_float: InFloat, measure: Callable[[Predict], float]) -> float:
        """Measure a network whose file nobody needs afterwards."""
        if in_float is None:
            return measure(self._predict(self.file(None)))
        with TemporaryDirectory(dir=self._folder) as scratch:
            return measure(self._predict(self._quantized(in_float, Path(scratch) / "int8")))

    def _predict(self, path: Path) -> Predict:
        return self._backend.open(path, self._backend.settings.shape).predict

    def _recorded(self, key: Sequence[Any], measure: Callable[[], Any]) -> Any:
        return self._recorder.once(_KIND, [self.name, *key], measure)
