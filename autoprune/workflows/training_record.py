"""What a fine-tune in a folder of its own was begun with: a repeated call goes on with that one, and with no other."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from autoprune.errors import TrainingError
from autoprune.io.files import make_folder, read_bytes, write_atomic
from autoprune.io.records import read_record
from autoprune.journal import JOURNAL_FILE
from autoprune.workflows.inputs import data_digests, source_digest
from autoprune.workflows.tuning_state import FINETUNE

FILE = "training.json"

CLOSE = 0.01
"""Largest difference of a tensor's norm, as a share, between prunings of the same network: GPUs round differently."""


@dataclass(frozen=True)
class TrainingRecord:
    """What tells one fine-tune from others.

    Attributes:
        settings: options by name, as text.
        data: one digest per part of the data set, or that of the file that builds the network and brings its data.
        network: the norm of every tensor by its name in the state dict.
        teacher: likewise; empty without one.
    """

    settings: dict[str, str]
    data: dict[str, str]
    network: dict[str, float]
    teacher: dict[str, float]

    @classmethod
    def of(
        cls, network: nn.Module, *, teacher: nn.Module | None, opened: Path, data: Path | None, **settings: object
    ) -> TrainingRecord:
        """Describe a training.

        Args:
            network: what is trained.
            teacher: its teacher, if there is one.
            opened: the name that the dense network was opened by.
            data: the data set's file or folder, if there is one.
            settings: options by name.
        """
        return cls(
            {name: str(value) for name, value in settings.items()},
            source_digest(opened) if data is None else data_digests(data),
            _norms(network),
            {} if teacher is None else _norms(teacher),
        )

    def claim(self, out: Path, model: Path) -> None:
        """Make a folder for this training, or make sure that it has this one.

        Args:
            out: the folder.
            model: what the training writes there in the end.

        Raises:
            TrainingError: it has another training, or what something else has left.
            RunError: it cannot be written.
        """
        file = make_folder(out) / FILE
        if file.exists():
            if differs := self._difference(_read(file)):
                raise TrainingError(f"{out} has another training: {differs}; choose another `out`, or remove {out}")
            return
        for other in (model, out / FINETUNE, out / JOURNAL_FILE):
            if other.exists():
                raise TrainingError(f"{other} is there, and no {FILE} says what it was made of; choose another `out`")
        write_atomic(file, json.dumps(asdict(self), indent=1) + "\n")

    def release(self, out: Path) -> None:
        """Give a folder up again in which nothing has been trained: a corrected call may take it."""
        if not any(out.rglob("last.pt")):
            shutil.rmtree(out / FINETUNE, ignore_errors=True)
            (out / FILE).unlink(missing_ok=True)
            with suppress(OSError):  # somebody else's files are in it
                out.rmdir()

    def _difference(self, before: TrainingRecord) -> str:
        for name, value in self.settings.items():
            if (was := before.settings.get(name)) != value:
                return f"`{name}` was {was} and is {value}"
        if self.data != before.data:
            return "the file of the network has changed" if "source" in self.data else "the data set has changed"
        if not _close(self.network, before.network):
            return "the network is another one"
        return "" if _close(self.teacher, before.teacher) else "the teacher is another one"


def _read(file: Path) -> TrainingRecord:
    try:
        return read_record(read_bytes(file).decode(), TrainingRecord, FILE)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read ({error}); choose another `out`") from error


def _norms(module: nn.Module) -> dict[str, float]:
    return {name: float(tensor.double().norm()) for name, tensor in module.state_dict().items()}


def _close(one: dict[str, float], other: dict[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        abs(norm - other[name]) <= CLOSE * max(norm, other[name]) for name, norm in one.items()
    )
