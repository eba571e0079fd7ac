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
from autoprune.models._base import Adapter
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


def tune_together(runner: Runner, adapter: Adapter, jobs: Sequence[TuningJob], listener: Listener) -> None:
    """Let workers fine-tune several networks into their folders, in which `tune` then finds ``model``.

    Without workers, or with one job alone, nothing is done: `tune` does it here. A worker trains in a temporary folder
    of its machine, so that one that dies, or a run that is killed, begins with these networks anew.

    Args:
        runner: of the run.
        adapter: has the data, which lies where the workers are, too.
        jobs: those whose ``model`` is there already are left out.
        listener: hears the progress, and what each fine-tune had to say.

    Raises:
        DataError: a worker cannot read the data set.
        TrainingError: a training failed.
    """
    if runner.usage is None or len(jobs) < 2:
        return
    waiting = [job for job in jobs if not adapter.checkpoint(job.folder, "model").exists()]
    teacher = waiting[0].tuning.teacher if waiting else None
    function = WorkerTuning(Shared(adapter), None if teacher is None else Shared(teacher))
    for job, answer in zip(tracked(waiting, "Fine-tuning"), runner.map(function, _Items(waiting)), strict=True):
        _write(answer.fetch(), job.folder, last=adapter.checkpoint(job.folder, "model"))
        for report in read_epochs(job.folder / FINETUNE):
            listener.log(report.epoch, report.figures(job.series, adapter.metric_names))
        for note in answer.summary:
            listener.note(note)


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
    """

    adapter: Shared[Adapter]
    teacher: Shared[nn.Module] | None

    def __call__(self, job: tuple[nn.Module, Tuning, Mapping[str, Any]]) -> Large[Sequence[str], Files]:
        """Return what `tune` notes and the files that it leaves.

        Raises:
            DataError: the data set is not here.
        """
        adapter, (module, tuning, notes) = self.adapter.value, job
        try:
            adapter.batches("train", images=1, batch=1, seed=0)
        except DataError as error:
            raise DataError(
                f"Every worker that fine-tunes must be able to read the data set, and on one {error}"
            ) from error
        tuning = replace(tuning, teacher=None if self.teacher is None else self.teacher.value)
        heard = _Notes()
        with tempfile.TemporaryDirectory(prefix="autoprune-") as name:
            folder = Path(name)
            tune(adapter, module, folder, tuning=tuning, notes=notes, listener=heard)
            found = [file for file in folder.rglob("*") if file.is_file()]
            return Large.of(heard.notes, {file.relative_to(folder).as_posix(): file.read_bytes() for file in found})


class _Notes(SilentListener):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)
