"""Several pruned networks of a run fine-tuned at the same time, each by a worker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import DataError
from autoprune.evaluation.runners import Large, Runner, Shared
from autoprune.io.files import saying_why, write_atomic
from autoprune.listener import Listener, SilentListener, tracked
from autoprune.metrics import format_amount
from autoprune.models._base import Adapter
from autoprune.models.detection.shipping import Packed, Shippable, pack, unpack
from autoprune.training.results import read_epochs
from autoprune.workflows.tuning import FINETUNE, Tuning, tune

Files = Mapping[str, bytes]
"""Contents of a folder's files, by their path in it."""


@dataclass(frozen=True)
class TuningJob:
    """A network that `tune` will be called for.

    Attributes:
        pruned: returns the network as its checkpoints hold it.
        folder: gets ``model``, and exists.
        tuning: how.
        notes: travel inside the checkpoint.
        series: of the curves.
    """

    pruned: Callable[[], nn.Module]
    folder: Path
    tuning: Tuning
    notes: Mapping[str, Any]
    series: str = "finetune"


def tune_together(
    runner: Runner, adapter: Adapter, jobs: Sequence[TuningJob], listener: Listener, *, ship_data: bool
) -> None:
    """Let workers fine-tune several networks into their folders, in which `tune` then finds ``model``.

    Without workers, or with one job alone, nothing is done: `tune` does it here. A worker trains in a temporary folder
    of its machine, so that one that dies, or a run that is killed, begins with these networks anew.

    Args:
        runner: of the run.
        adapter: has the data.
        jobs: those whose ``model`` is there already are left out.
        listener: hears the progress, and what each fine-tune had to say.
        ship_data: send the data set, too.

    Raises:
        DataError: a worker cannot read the data set, or it cannot be sent.
        TrainingError: a training failed.
    """
    if runner.usage is None or len(jobs) < 2:
        return
    waiting = [job for job in jobs if not adapter.checkpoint(job.folder, "model").exists()]
    if not waiting:
        return
    teacher = waiting[0].tuning.teacher
    packed = _packed(adapter, listener) if ship_data else None
    function = WorkerTuning(Shared(adapter), Shared(teacher), Shared(packed))
    for job, answer in zip(tracked(waiting, "Fine-tuning"), runner.map(function, _Items(waiting)), strict=True):
        _write(answer.fetch(), job.folder, last=adapter.checkpoint(job.folder, "model"))
        for report in read_epochs(job.folder / FINETUNE):
            listener.log(report.epoch, report.figures(job.series, adapter.metric_names))
        for note in answer.summary:
            listener.note(note)


def _packed(adapter: Adapter, listener: Listener) -> Packed:
    if not isinstance(adapter, Shippable) or adapter.data is None:
        raise DataError(
            f"`ship_data` sends the files of a data set, and that of {adapter.name} is read by code of its own; put "
            "them where all machines see them"
        )
    packed = pack(adapter.data)
    listener.note(f"The data set goes to the workers once: {format_amount('size', packed.nbytes)}.")
    return packed


def _write(files: Files, folder: Path, *, last: Path) -> None:
    """Write the files of a fine-tune; its checkpoint is there only if all others are."""
    for path in sorted(map(folder.joinpath, files), key=lambda path: path == last):
        with saying_why(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, files[path.relative_to(folder).as_posix()])


class _Items(Sequence[tuple[nn.Module, Tuning, Mapping[str, Any]]]):
    """What workers get of jobs; each network is made when a worker is there for it."""

    def __init__(self, jobs: Sequence[TuningJob]) -> None:
        self._jobs = jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, place: Any) -> Any:
        job = self._jobs[place]
        return job.pruned(), replace(job.tuning, teacher=None), job.notes


@dataclass(frozen=True, eq=False)
class WorkerTuning:
    """Fine-tunes networks on a worker.

    Attributes:
        adapter: has the data.
        teacher: teaches all of them, or None.
        packed: the data set if it is not where the adapter says, or None.
    """

    adapter: Shared[Adapter]
    teacher: Shared[nn.Module | None]
    packed: Shared[Packed | None]

    def __call__(self, job: tuple[nn.Module, Tuning, Mapping[str, Any]]) -> Large[Sequence[str], Files]:
        """Return what `tune` notes and the files that it leaves.

        Raises:
            DataError: the data set is not here.
        """
        module, tuning, notes = job
        tuning = replace(tuning, teacher=self.teacher.value)
        heard = _Notes()
        with tempfile.TemporaryDirectory(prefix="autoprune-") as name:
            folder = Path(name) / "run"
            folder.mkdir()
            tune(self._adapter(Path(name) / "data"), module, folder, tuning=tuning, notes=notes, listener=heard)
            found = [file for file in folder.rglob("*") if file.is_file()]
            return Large.of(heard.notes, {file.relative_to(folder).as_posix(): file.read_bytes() for file in found})

    def _adapter(self, folder: Path) -> Adapter:
        """Return the adapter with data that can be read here; a data set that was sent is written into a folder."""
        adapter = self.adapter.value
        if self.packed.value is not None:
            assert isinstance(adapter, Shippable)
            return adapter.with_data(unpack(self.packed.value, folder))
        try:
            adapter.batches("train", images=1, batch=1, seed=0)
        except DataError as error:
            raise DataError(
                f"Every worker that fine-tunes must be able to read the data set, and on one {error}; put the files "
                "where all machines see them, or send them with `ship_data`"
            ) from error
        return adapter


class _Notes(SilentListener):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)
