"""Interfaces of runtimes: load a network or a file for an input shape, and run it under the timing loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autoprune.errors import DeviceError, is_out_of_memory
from autoprune.runtimes.energy_counter import find_counter
from autoprune.runtimes.hosts import BoardWatch
from autoprune.runtimes.settings import RuntimeSettings

Times: TypeAlias = npt.NDArray[np.float64]
"""Milliseconds of single runs, shape (rounds, runners)."""

Calibration = Callable[[], Sequence[torch.Tensor]]
"""Returns batches of real input images, each of shape (B, channels, height, width)."""


class Runner(ABC):
    """One network, loaded and ready to run.

    Attributes:
        note: a remark for users if the network does not run as the settings say; else None.
        in_thread: whether the thread that calls computes, alone: its CPU time is then the time without waits.
    """

    note: str | None = None
    in_thread: bool = False

    @abstractmethod
    def elapsed(self) -> float:
        """Run once with the device idle before and after, and return the milliseconds."""

    def rounds(self, runners: Sequence[Runner], rounds: int) -> Times | None:
        """Run networks once per round where they are loaded, in one request.

        Args:
            runners: this one, and others.
            rounds: how many.

        Returns:
            Milliseconds, shape (rounds, runners); None if they must be run one by one from here.
        """
        return None

    def joules(self, runs: int) -> float:
        """Run a number of times where the network is loaded, and return the joules that the machine used meanwhile.

        Raises:
            NoCounterError: nothing counts them, see `autoprune.runtimes.energy.counter_of`.
        """

        def act() -> None:
            for _ in range(runs):
                self.elapsed()

        return find_counter().joules(act)

    def watch(self) -> BoardWatch | None:
        """Return what watches, from now on, the board that the network runs on; None if that is this machine."""
        return None


class FileRunner(Runner):
    """A network from a file, whose outputs can be read."""

    @abstractmethod
    def outputs(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Run on an input of the network's shape, in any floating-point type, and return the outputs on the CPU."""

    def predict(
        self, images: torch.Tensor, *, together: bool = False, batch: int = 1
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the output for images (a tuple if there are several outputs), float32, on the images' device.

        Args:
            images: shape (B, channels, height, width).
            together: run them as one batch, which needs a file with a dynamic shape.
            batch: else run this number at once, as the file takes; the last ones are filled up with the first image.
        """
        missing = 0 if together else -len(images) % batch
        filled = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
        parts = filled.chunk(1 if together else len(filled) // batch)
        found = zip(*(self.outputs(part) for part in parts), strict=True)
        outputs = tuple(torch.cat([one.float() for one in output])[: len(images)].to(images.device) for output in found)
        return outputs[0] if len(outputs) == 1 else outputs


class FileBackend(ABC):
    """Runs networks from files in a runtime's own format.

    Attributes:
        settings: how networks run.
    """

    settings: RuntimeSettings

    @abstractmethod
    def session(self) -> AbstractContextManager[None]:
        """Pin the process's state as ``Backend.session`` does; networks are opened and run inside it."""

    @abstractmethod
    def open(self, path: Path, shape: tuple[int, ...]) -> FileRunner:
        """Load a network.

        Args:
            path: its file.
            shape: of the input that it is timed on; the file's own, if that is fixed.

        Raises:
            DeviceError: the runtime refuses the file.
        """

    @abstractmethod
    def convert(self, source: Path, to: Path) -> None:
        """Write a traced network, ONNX unless the format's record says otherwise, in the runtime's own format.

        Raises:
            DeviceError: the runtime refuses the network.
        """


class Backend(ABC):
    """Loads networks into one runtime, under settings that stay the same for all of them.

    Args:
        settings: how networks run.
        calibration: returns the images for the activation ranges of int8; other precisions do not call it.

    Raises:
        DeviceError: the runtime is not installed, or the device lacks the precision.
    """

    def __init__(self, settings: RuntimeSettings, calibration: Calibration | None = None) -> None:
        self.settings = settings
        self.calibration = calibration

    @abstractmethod
    def session(self) -> AbstractContextManager[None]:
        """Pin threads and disable gradients, so that runs are comparable.

        Networks are prepared and run inside it. Running out of memory inside it raises ``DeviceError``.
        """

    @abstractmethod
    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Load a copy of an eval-mode network for inputs of one shape; the module is not modified.

        Raises:
            DeviceError: the network does not fit into the device's memory, or the runtime cannot run it.
        """

    def export(self, module: nn.Module, shape: tuple[int, ...]) -> Callable[[], Runner]:
        """Do what ``prepare`` does without the device, and return what does the rest.

        A board can measure one network while the next one is exported by another thread of this machine.
        """
        return lambda: self.prepare(module, shape)


@contextmanager
def waiting_session(settings: RuntimeSettings) -> Iterator[None]:
    """Limit torch to one thread in a process that only exports networks and waits, see ``Backend.session``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for work would take the runtime's cores
    try:
        with memory_guard(settings):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def memory_guard(settings: RuntimeSettings) -> Iterator[None]:
    """Turn running out of memory inside into a ``DeviceError``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"The network must fit into the memory of {settings.device}; at batch {settings.batch} and image size "
            f"{settings.image_size} it does not: use a smaller `batch` or `imgsz`"
        ) from error
