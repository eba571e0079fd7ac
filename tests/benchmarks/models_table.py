"""Print the table of docs/models.md: ``python -m tests.benchmarks.models_table [--names …] [--no-training]``.

Every network is built from a YAML that Ultralytics brings, untrained, and every cell comes from a run on a tiny drawn
data set. What a network fails at is told in the cell.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())

import numpy as np
import torch
from torch import nn

from autoprune.choices import Precision, Runtime
from autoprune.costs import ParamsCost, parameter_shapes
from autoprune.formats import ONNX, TOLERANCES
from autoprune.models._base import ExportSettings
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.models.ultralytics.scaling import describe, kind_of
from autoprune.models.ultralytics.tasks import TASKS
from autoprune.runtimes import open_file_backend, runtime_settings
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from autoprune.training.extensions._base import TrainingExtension
from autoprune.training.finetune import finetune
from autoprune.training.shapes import check_shapes, shapes_of
from tests.helpers.networks import DETECTORS, compared, random_keep, shaken, zeroed
from tests.helpers.task_data import write_task_data

NANO = (
    *DETECTORS,
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov8n-obb",
    "yolov8n-cls",
    "yolo11n-seg",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo11n-cls",
    "yolo26n-seg",
    "yolo26n-pose",
    "yolo26n-obb",
    "yolo26n-cls",
    "yolov8n-rtdetr",
)
"""The smallest network of every family and task."""

SIZE, IMAGES, KEPT = 64, 4, 0.5


class Stopped(Exception):
    """Stops a training."""


class StopAfterSaving(TrainingExtension):
    """Stops a training where its first epoch is on the disk."""

    def attach(self, session: Any) -> None:
        session.listen("on_model_save", self._stop)

    def _stop(self, session: Any) -> None:
        raise Stopped


class Row:
    """One network, and what is done with it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        task = TASKS[kind_of(describe(f"{name}.yaml"))].name
        data = write_task_data(folder / "data", task, images=IMAGES, size=SIZE)
        self.adapter = UltralyticsAdapter.untrained(f"{name}.yaml", data=data, image_size=SIZE)

    @cached_property
    def graph(self) -> Any:
        adapter = self.adapter
        return analyse(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)

    @cached_property
    def space(self) -> Space:
        return Space(self.graph, round_to=1, min_keep=1e-6)

    @cached_property
    def pruned(self) -> nn.Module:
        """Half of every unit, channels as they come."""
        counts = [max(1, round(unit.width * KEPT)) for unit in self.space.units]
        keep = self.space.kept_channels(counts, [np.arange(group.size)[::-1] for group in self.graph.groups])
        return Slicer(self.adapter.module, self.graph).materialise(keep)

    def parameters(self) -> str:
        return f"{sum(parameter.numel() for parameter in self.adapter.module.parameters()) / 1e6:.1f} M"

    def units(self) -> str:
        return str(len(self.space))

    def prunable(self) -> str:
        cost = ParamsCost(self.space, parameter_shapes(self.adapter.module))
        return f"{1 - float(cost(self.space.lower)) / float(cost(self.space.dense)):.0%}"

    def exact(self) -> str:
        """The largest difference of the pruned network's raw outputs from the masked dense one's, in float64."""
        torch.manual_seed(0)
        module = shaken(deepcopy(self.adapter.module))
        keep = random_keep(self.space, 0)
        images = self.adapter.example(2).double()
        with torch.no_grad():
            found = compared(Slicer(module, self.graph).materialise(keep).eval()(images))
            expected = compared(zeroed(module, self.graph, keep).eval()(images))
        apart = max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
        return f"{apart:.0e}" if apart < 1e-8 else f"differs by {apart:.1e}"

    def trains(self) -> str:
        """An epoch, and what lies on the disk has the pruned network's shapes."""
        try:
            finetune(
                self.adapter,
                self.pruned,
                epochs=2,
                out=self.folder / "tuned",
                batch=2,
                workers=0,
                extensions=[StopAfterSaving()],
            )
        except Stopped:
            last = self.folder / "tuned" / "weights" / "last.pt"
            check_shapes(shapes_of(read_checkpoint(last).module), shapes_of(self.pruned), last)
            return "yes"
        return "was not stopped"

    def resumes(self) -> str:
        """The stopped training goes on to its end, and its result has the pruned network's shapes."""
        result = finetune(
            self.adapter, self.pruned, epochs=2, out=self.folder / "tuned", batch=2, workers=0, resume=True
        )
        check_shapes(shapes_of(result.module), shapes_of(self.pruned), self.folder)
        return "yes" if result.epochs == 2 else f"after {result.epochs} epochs"

    def exports(self) -> str:
        """An ONNX file's outputs are those of torch."""
        adapter, folder = self.adapter, self.folder / "exported"
        folder.mkdir()
        settings = runtime_settings("cpu", image_size=SIZE, runtime=Runtime.ONNXRUNTIME, threads=1)
        backend, images = open_file_backend(settings, ONNX.spec), adapter.example(4)
        path = adapter.export(self.pruned, folder, ExportSettings(ONNX.spec), convert=backend.convert)
        with torch.no_grad():
            expected = adapter.deployable(self.pruned)(images)
        with backend.session():
            found = backend.open(path, settings.shape).predict(images)
        apart, most = adapter.difference(expected, found), TOLERANCES[Precision.FP32]
        good = apart.scores <= most.scores and apart.boxes <= most.boxes
        told = f"{apart.boxes:.0e} px, {apart.scores:.0e}"
        return f"yes ({told})" if good else f"differs by {told}"


def main() -> None:
    """Print a row of Markdown for every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", default=NANO, help="YAMLs that Ultralytics brings, without the suffix")
    parser.add_argument("--no-training", action="store_true", help="leave out the columns 'trains' and 'resumes'")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    columns: dict[str, Callable[[Row], str]] = {
        "parameters": Row.parameters,
        "units": Row.units,
        "prunable": Row.prunable,
        "exact": Row.exact,
        "trains": Row.trains,
        "resumes": Row.resumes,
        "exports": Row.exports,
    }
    if options.no_training:
        del columns["trains"], columns["resumes"]
    print("| model |", " | ".join(columns), "| seconds | pinned |")
    print("|---" * (len(columns) + 3) + "|")
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            try:
                row = Row(name, Path(folder) / name)
                cells = [_cell(partial(make, row)) for make in columns.values()]
                cells += [f"{time.perf_counter() - start:.0f}", _cell(partial(_pinned, row))]
            except Exception as error:
                cells = [_reason(error)]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def _cell(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as error:  # is what the table tells
        return _reason(error)


def _reason(error: Exception) -> str:
    return f"no: {(str(error) or type(error).__name__).splitlines()[0][:160]}"


def _pinned(row: Row) -> str:
    """Name what keeps channels, with how many groups of channels it keeps."""
    reasons = Counter(_short(group.pinned) for group in row.graph.groups if group.pinned)
    reasons.pop("network input", None)
    return "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(4))


def _short(reason: str) -> str:
    """Join what differs only in the place or the numbers."""
    reason = re.sub(r"^(view|reshape) in model\.\d+$", "outputs of the head", reason)
    reason = re.sub(r"^(\w+) in .*attn.*$", r"\1 in attention", reason)
    reason = re.sub(r".*shape '.*", "attention reads its input's width, found by the proof", reason)
    return re.sub(r"^(\w+) in model\..*$", r"\1", reason)


if __name__ == "__main__":
    main()
