"""Static int8 quantisation of a trained network: which of its layers stay in float, by what they cost in accuracy.

Ranges are found on one set of training images and every decision is taken on another one, so that the validation split
only tells how it went.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch

from autoprune.choices import ExportFormat, Runtime
from autoprune.cost.meter import Recorder
from autoprune.errors import ExportError
from autoprune.files import size_of
from autoprune.models._base import Accuracy, Adapter, Batch, ExportSettings, Predict, Predictions
from autoprune.runtimes import RUNTIMES, SeparateBackend

InFloat: TypeAlias = tuple[str, ...] | None
"""Which network is meant: the quantised one with these groups in float, or where None the float one."""

FILES: Mapping[Runtime, str] = {
    Runtime.ONNXRUNTIME: "model.int8.onnx",
    Runtime.OPENVINO: "model_int8_openvino_model",  # Ultralytics knows the format by the end of the folder's name
}
"""What quantised networks are called."""

_FORMATS = {runtime: file_format for file_format, runtime in RUNTIMES.items()}
_KIND = "quantize"


@dataclass(frozen=True)
class Group:
    """Operations that are quantised together, or stay in float together.

    Attributes:
        name: the stage, or the branch of the head, that their layers belong to, e.g. ``model.4`` or ``model.22/cv3.0``.
        operations: their names in the exported network.
    """

    name: str
    operations: tuple[str, ...]


@dataclass(frozen=True)
class Samples:
    """Training images, each in one of the two sets only.

    Attributes:
        calibration: inputs that ranges are found on, each of shape (1, 3, image_size, image_size).
        held_out: labelled images that decide which layers stay in float.
    """

    calibration: Sequence[torch.Tensor]
    held_out: Sequence[Batch]


@dataclass(frozen=True)
class Step:
    """One network that was tried.

    Attributes:
        in_float: names of the groups that are not quantised.
        accuracy: its main figure on the held-out training images.
        drop: how much lower that is than the float network's on the same runtime.
    """

    in_float: tuple[str, ...]
    accuracy: float
    drop: float


@dataclass(frozen=True)
class Deployed:
    """A network in its runtime's format.

    Attributes:
        accuracy: on the validation split, every image letterboxed to the input's square.
        size_bytes: of the file, or of all files in the folder.
    """

    accuracy: Accuracy
    size_bytes: int


@dataclass(frozen=True)
class Choice:
    """What stays in float, and how that was found.

    Attributes:
        accuracy: the float network's main figure on the held-out training images.
        errors: by group, how far the predictions are off where it alone is quantised, in [0, 1], the worst one first;
            empty where nothing had to be found.
        steps: the networks that were tried, the chosen one last.
    """

    accuracy: float
    errors: Mapping[str, float]
    steps: tuple[Step, ...]

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of the groups that are not quantised."""
        return self.steps[-1].in_float


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
        backend: SeparateBackend,
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
    def figure(self) -> str:
        """What the main figure of the accuracy is called."""
        return self._adapter.accuracy_names.main

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
        """Return the main figure of a network's accuracy on the held-out training images."""

        def measure(predict: Predict) -> float:
            accuracy = self._adapter.accuracy(self._adapter.module, self._samples.held_out, predict=predict)
            return accuracy.main

        return float(self._recorded(["held out", in_float], lambda: self._with(in_float, measure)))

    def deployed(self, in_float: InFloat) -> Deployed:
        """Return what a network is on the validation split and on the disk."""

        def measure() -> dict[str, Any]:
            path = self.file(in_float)
            found = self._adapter.validate_deployed(self._predict(path))
            return {"accuracy": asdict(found), "size_bytes": size_of(path)}

        found = self._recorded(["deployed", in_float], measure)
        return Deployed(Accuracy(**found["accuracy"]), int(found["size_bytes"]))

    @cached_property
    def _source(self) -> Path:
        """The float network as ONNX, which what quantises reads."""
        return self._exported(ExportFormat.ONNX)

    def _exported(self, file_format: ExportFormat) -> Path:
        folder = self._folder / file_format.value
        folder.mkdir()
        adapter = self._adapter
        return adapter.export(adapter.module, folder, ExportSettings(file_format), convert=self._backend.convert)

    def _plain(self) -> Path:
        """The float network in the runtime's format."""
        file_format = _FORMATS[self._backend.settings.runtime]
        return self._source if file_format is ExportFormat.ONNX else self._exported(file_format)

    def _finished(self, in_float: Sequence[str]) -> Path:
        """Write a quantised network, in a folder with what lies beside the float one where that is in one."""
        plain, folder = self.file(None), self._folder / f"finished-{len(self._files)}"
        folder.mkdir()
        name = FILES[self._backend.settings.runtime]
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
        """The calibration images as a file of shape (images, 1, 3, image_size, image_size)."""
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
        found = self._recorder.lookup(_KIND, [self.name, *key])
        if found is None:
            found = measure()
            self._recorder.append(_KIND, [self.name, *key], found)
        return found


def choose(quantization: Quantization, *, max_drop: float, advance: Callable[[int, str], None]) -> Choice:
    """Quantise everything; then leave the most sensitive groups in float, one more at a time, until little is lost.

    Groups are ordered by the error of the predictions where each alone is quantised, which tells apart what accuracy
    on a few images does not; that decides how many of them stay in float.

    Args:
        quantization: the network.
        max_drop: how much of the accuracy's main figure may be lost on the held-out images.
        advance: told how many measurements are done of two for each group, and a word.

    Raises:
        ExportError: even the least sensitive group alone loses more.

    Source:
        Wu et al., Integer Quantization for Deep Learning Inference, 2020, section 5.1 (partial quantization): layers
        are ranked by what each loses alone in int8, and left in float from the worst one on.
    """
    groups = [group.name for group in quantization.groups]
    whole, figure = quantization.held_out(None), quantization.figure
    steps: list[Step] = []

    def holds(in_float: tuple[str, ...], done: int) -> bool:
        found = quantization.held_out(in_float)
        steps.append(Step(in_float, found, whole - found))
        advance(done, f"loses {whole - found:.4f} of {figure} with {len(in_float)} of {len(groups)} groups in float")
        return whole - found <= max_drop

    if holds((), 1):
        return Choice(whole, {}, tuple(steps))
    errors = _ranked(quantization, groups, advance)
    for count in range(1, len(groups)):
        if holds(tuple(errors)[:count], len(groups) + count):
            return Choice(whole, errors, tuple(steps))
    raise ExportError(
        f"int8 of the {quantization.name} must lose at most --max-drop {max_drop:g} of {figure} on training images, "
        f"and loses {steps[-1].drop:.4f} even where only {list(errors)[-1]} is quantised; allow more, or keep the "
        "float network, which autoprune export writes"
    )


def _ranked(quantization: Quantization, groups: Sequence[str], advance: Callable[[int, str], None]) -> dict[str, float]:
    """Return each group's error, the worst one first."""
    errors = {}
    for done, group in enumerate(groups, 1):
        errors[group] = quantization.error(group)
        advance(done, f"{group} off by {errors[group]:.4f}")
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def group_operations(operations: Iterable[tuple[str, bool]], stages: Collection[str]) -> tuple[Group, ...]:
    """Sort a network's operations into groups: a stage is one, and so is each branch of what is no stage, the head.

    Operations without weights that come before a group, such as a concatenation, belong to it: its layers read them.

    Args:
        operations: their names, paths as ``/model.2/cv1/conv/Conv``, in their order, each with whether it has weights
            to quantise. Names that are no paths, as exporters give to constants, are in no group.
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
    groups: list[Group] = []
    waiting: list[str] = []
    for scope, names in scopes.items():
        waiting += names
        if scope in weighty:
            groups.append(Group(scope, tuple(waiting)))
            waiting = []
    if groups and waiting:
        groups[-1] = Group(groups[-1].name, (*groups[-1].operations, *waiting))
    return tuple(groups)
