"""A network written for a runtime, measured there, with what tells whether it still is the same network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from autoprune.choices import Precision
from autoprune.formats import Tolerance
from autoprune.io.files import size_of
from autoprune.latency.meter import REFERENCE_MEASUREMENT
from autoprune.latency.timing import Timing, time_alone
from autoprune.listener import step_bar
from autoprune.models._base import Adapter, Difference, ExportSettings
from autoprune.results import Metrics
from autoprune.runtimes import FileBackend
from autoprune.runtimes._base import memory_guard

COMPARED = 8
"""Images on which outputs are compared."""


@dataclass(frozen=True)
class Parity:
    """An exported network next to the torch network that it was made of.

    Attributes:
        images: how many images the outputs were compared on.
        real: whether these are of the validation split; noise otherwise.
        difference: the largest difference of the outputs.
        torch: accuracy of the torch network on the validation split, every image letterboxed to the input's size;
            None if there are no images.
        exported: the same of the exported network on its runtime.
    """

    images: int
    real: bool
    difference: Difference
    torch: Metrics | None
    exported: Metrics | None

    @property
    def accuracy_apart(self) -> float | None:
        """How much the primary metric differs, if it is known."""
        if self.torch is None or self.exported is None:
            return None
        return abs(self.torch.primary - self.exported.primary)

    def beyond(self, tolerance: Tolerance, metric: str) -> tuple[str, ...]:
        """Return what lies beyond the tolerance, each as text; the primary metric by its name."""
        compared = (
            ("scores differ by {:.4g}, allowed are {:g}", self.difference.scores, tolerance.scores),
            ("boxes differ by {:.4g} px, allowed are {:g}", self.difference.boxes, tolerance.boxes),
            (metric + " differs by {:.4g}, allowed are {:g}", self.accuracy_apart or 0.0, tolerance.accuracy),
        )
        return tuple(text.format(found, most) for text, found, most in compared if not found <= most)


@dataclass(frozen=True)
class Exported:
    """What an export left behind.

    Attributes:
        path: the file, or the folder.
        size_bytes: of all its content.
        parity: how it compares with torch.
        latency: milliseconds per run on its runtime.
    """

    path: Path
    size_bytes: int
    parity: Parity
    latency: Timing


def export(adapter: Adapter, folder: Path, *, wanted: ExportSettings, backend: FileBackend, real: bool) -> Exported:
    """Write the adapter's network, run it on its runtime, and compare it with torch.

    Args:
        adapter: the network, on the device that the backend runs on.
        folder: an empty folder for what is written.
        wanted: how it is written, in a format that the backend runs; with open sizes the images are compared in one
            batch. Its ``half`` is set here.
        backend: what runs it.
        real: compare on validation images, and the accuracy; else on noise.

    Raises:
        ModelError: the format cannot express the network.
        DeviceError: the runtime cannot run it, or memory does not suffice.
        DataError: the validation split cannot be read.
    """
    settings = backend.settings
    half = settings.precision is Precision.FP16 and settings.device != "cpu"  # on a CPU the conversion has it
    images = _images(adapter, real=real)
    with step_bar(f"Exporting {wanted.spec.name}", 4) as advance:
        with memory_guard(settings):
            module = adapter.deployable(adapter.module, with_nms=wanted.nms)
            with torch.no_grad():
                expected = module(images)
            accuracy = adapter.validate_deployed(module, with_nms=wanted.nms) if real else None
            advance(1, "run in torch")
            path = adapter.export(adapter.module, folder, replace(wanted, half=half), convert=backend.convert)
            advance(2, "written")
        with backend.session():
            runner = backend.open(path, settings.shape)
            predict = partial(runner.predict, together=wanted.dynamic, batch=wanted.batch)
            parity = Parity(
                images=len(images),
                real=real,
                difference=adapter.difference(expected, predict(images), with_nms=wanted.nms),
                torch=accuracy,
                exported=adapter.validate_deployed(predict, with_nms=wanted.nms) if real else None,
            )
            advance(3, "compared with torch")
            config = replace(REFERENCE_MEASUREMENT, threads=settings.threads)
            timing = time_alone(runner, config)
            advance(4, "timed")
    return Exported(path, size_of(path), parity, timing)


def _images(adapter: Adapter, *, real: bool) -> torch.Tensor:
    """Return the images that outputs are compared on, shape (B, *input_shape)."""
    if not real:
        return adapter.example(COMPARED)
    (batch,) = adapter.batches("val", images=COMPARED, batch=COMPARED, seed=0)
    return adapter.inputs(batch)
