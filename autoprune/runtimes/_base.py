"""What a runtime is: it takes a network and an input shape, and gives runs that the timing loop can time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from autoprune.errors import DeviceError
from autoprune.runtimes.settings import RuntimeSettings

Calibration = Callable[[], Sequence[torch.Tensor]]
"""Gives batches of input images, each of shape (B, channels, height, width), as the network meets them in use."""


class Runner(ABC):
    """One network, loaded and ready to run.

    Attributes:
        note: what a reader should know of how the network really runs where the settings say otherwise; else None.
    """

    note: str | None = None

    @abstractmethod
    def elapsed(self) -> float:
        """Run once with the device idle before and after, and return the milliseconds that it took."""


class FileRunner(Runner):
    """A network from a file, which also tells what it computes."""

    @abstractmethod
    def outputs(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Run on an input of the network's shape, in any floating-point type, and return the outputs on the CPU."""

    def predict(self, images: torch.Tensor, *, together: bool = False) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the output for images, or the outputs where there are several, in float32 on their device.

        Args:
            images: shape (B, channels, height, width).
            together: run them as one batch, which a file of open shape takes; else one by one.
        """
        parts = images.chunk(1 if together else len(images))
        found = zip(*(self.outputs(part) for part in parts), strict=True)
        outputs = tuple(torch.cat([one.float() for one in output]).to(images.device) for output in found)
        return outputs[0] if len(outputs) == 1 else outputs


class FileBackend(ABC):
    """Runs networks from files of a runtime's own format.

    Attributes:
        settings: how networks run.
    """

    settings: RuntimeSettings

    @abstractmethod
    def session(self) -> AbstractContextManager[None]:
        """Hold the process still; see ``Backend``. Networks are opened and run inside it."""

    @abstractmethod
    def open(self, path: Path, shape: tuple[int, ...]) -> FileRunner:
        """Load a network.

        Args:
            path: its file.
            shape: of the input that it is timed on; the file's own, where that is fixed.

        Raises:
            DeviceError: the runtime refuses the file.
        """

    @abstractmethod
    def convert(self, source: Path, to: Path) -> None:
        """Write an ONNX file in the runtime's own format.

        Raises:
            DeviceError: the runtime refuses the network.
        """


class Backend(ABC):
    """Loads networks into one runtime, under settings that stay the same for all of them.

    Args:
        settings: how networks run.
        calibration: gives the images that an int8 network's ranges are found on; other precisions do not call it.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """

    def __init__(self, settings: RuntimeSettings, calibration: Calibration | None = None) -> None:
        self.settings = settings
        self.calibration = calibration

    @abstractmethod
    def session(self) -> AbstractContextManager[None]:
        """Hold the process in the state in which runs are comparable: threads pinned, no gradients.

        Networks are prepared and run inside it. Running out of memory inside it raises ``DeviceError``.
        """

    @abstractmethod
    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Load a copy of an eval-mode network for inputs of one shape; the module is not modified.

        Raises:
            DeviceError: the network does not fit into the device's memory, or the runtime cannot run it.
        """


FULL = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""What the errors of torch, CUDA, cuBLAS and cuDNN say where memory ran out."""


@contextmanager
def memory_guard(settings: RuntimeSettings) -> Iterator[None]:
    """Turn running out of memory inside into a ``DeviceError``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        full = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not full and not any(sign in text for sign in FULL):
            raise
        raise DeviceError(
            f"The network must fit into the memory of {settings.device}; at batch {settings.batch} and image size "
            f"{settings.image_size} it does not: use a smaller `batch` or `imgsz`"
        ) from error
