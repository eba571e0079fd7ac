"""Several pruned networks of a run fine-tuned at the same time, each by a worker."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import DataError
from autoprune.evaluation.runners import Large, Runner, Shared
from autoprune.io.files import make_folder, write_atomic
from autoprune.listener import Listener, SilentListener, tracked
from autoprune.metrics import format_amount
from autoprune.models._base import Adapter
from autoprune.models.detection.shipping import Packed, Shippable, pack, unpack_once
from autoprune.training.results import read_epochs
from autoprune.workflows.tuning import Tuning, tune
from autoprune.workflows.tuning_state import FINETUNE, keep, kept_in, restore, state_file, take_over

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
        adapter: the network's own; that of the run if None.
    """

    pruned: Callable[[], nn.Module]
    folder: Path
    tuning: Tuning
    notes: Mapping[str, Any]
    series: str = "finetune"
    adapter: Adapter | None = None


@dataclass(frozen=True)
class WorkerJob:
    """A `TuningJob` as it goes to a worker.

    Attributes:
        module: the pruned network.
        tuning: how, without the teacher.
        notes: travel inside the checkpoint.
        state: a file of the run's folder that takes the training's files after every epoch, if the worker sees it; a
            fine-tune whose worker, or whose run, was killed goes on from there.
        adapter: the network's own, or None.
    """

    module: nn.Module
    tuning: Tuning
    notes: Mapping[str, Any]
    state: Path
    adapter: Adapter | None = None


def tune_together(
    runner: Runner, adapter: Adapter, jobs: Sequence[TuningJob], listener: Listener, *, ship_data: bool
) -> None:
    """Let workers fine-tune several networks into their folders, in which `tune` then finds ``model``.

    Without workers, or with one job alone that none has begun, nothing is done: `tune` does it here. A worker trains in
    a temporary folder of its machine. If it sees the run's folder, it leaves its state there after every epoch, and the
    fine-tune of a worker that dies, or of a run that is killed, goes on from there, with workers or without; otherwise
    it begins anew.

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
    waiting = [job for job in jobs if not adapter.checkpoint(job.folder, "model").exists()]
    if runner.usage is None or not waiting or (len(jobs) < 2 and kept_in(waiting[0].folder) is None):
        return
    teacher = waiting[0].tuning.teacher
    packed = _packed(adapter, listener) if ship_data else None
    function = WorkerTuning(Shared(adapter), Shared(teacher), Shared(packed))
    for job, answer in zip(tracked(waiting, "Fine-tuning"), runner.map(function, _Items(waiting)), strict=True):
        _write(answer.fetch(), job.folder, last=adapter.checkpoint(job.folder, "model"))
        take_over(job.folder, wanted=False)
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
        make_folder(path.parent)
        write_atomic(path, files[path.relative_to(folder).as_posix()])


class _Items(Sequence[WorkerJob]):
    """What workers get of jobs; each network is made when a worker is there for it."""

    def __init__(self, jobs: Sequence[TuningJob]) -> None:
        self._jobs = jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, place: Any) -> Any:
        job = self._jobs[place]
        tuning = replace(job.tuning, teacher=None)
        return WorkerJob(job.pruned(), tuning, job.notes, state_file(job.folder).absolute(), job.adapter)


@dataclass(frozen=True, eq=False)
class WorkerTuning:
    """Fine-tunes networks on a worker.

    Attributes:
        adapter: has the data.
        teacher: teaches all of them, or None.
        packed: the data set if it is not where the adapter says, or None.
        name: of the temporary folder that a machine has it in.
    """

    adapter: Shared[Adapter]
    teacher: Shared[nn.Module | None]
    packed: Shared[Packed | None]
    name: str = field(default_factory=lambda: f"autoprune-{secrets.token_hex(16)}")

    def __call__(self, job: WorkerJob) -> Large[Sequence[str], Files]:
        """Return what `tune` notes and the files that it leaves.

        Raises:
            DataError: the data set is not here.
        """
        adapter = self._with_data(job.adapter or self.adapter.value)
        tuning = replace(job.tuning, teacher=self.teacher.value)
        with tempfile.TemporaryDirectory(prefix="autoprune-") as name:
            folder = Path(name)
            restore(folder, job.state)
            heard = _Notes(partial(keep, folder, job.state))
            tune(adapter, job.module, folder, tuning=tuning, notes=job.notes, listener=heard)
            files = (file for file in folder.rglob("*") if file.is_file())
            return Large.of(heard.notes, {file.relative_to(folder).as_posix(): file.read_bytes() for file in files})

    @cached_property
    def _data(self) -> Path:
        """The data set that was sent, in a folder of all workers of this machine, until they forget this function."""
        assert self.packed.value is not None
        folder = Path(tempfile.gettempdir()) / self.name
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return unpack_once(self.packed.value, folder)

    def _with_data(self, adapter: Adapter) -> Adapter:
        """Return the adapter with data that can be read here."""
        if self.packed.value is not None:
            assert isinstance(adapter, Shippable)
            return adapter.with_data(self._data)
        try:
            adapter.batches("train", images=1, batch=1, seed=0)
        except DataError as error:
            raise DataError(
                f"Every worker that fine-tunes must be able to read the data set, and on one {error}; put the files "
                "where all machines see them, or send them with `ship_data`"
            ) from error
        return adapter


class _Notes(SilentListener):
    """Keeps the notes.

    Args:
        epoch_ended: called after every epoch.
    """

    def __init__(self, epoch_ended: Callable[[], None]) -> None:
        self.notes: list[str] = []
        self._epoch_ended = epoch_ended

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Say that an epoch has ended; the curves are drawn from the files that it leaves."""
        self._epoch_ended()

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)
