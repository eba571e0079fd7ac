"""Fine-tunes on workers: what they leave, and data that is sent to them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch

from autoprune.config import CompareConfig, NetAdaptConfig
from autoprune.errors import ConfigError, DataError
from autoprune.evaluation.runners import Shared, Usage
from autoprune.listener import SilentListener
from autoprune.models.detection import shipping
from autoprune.models.detection.shipping import pack, unpack_once
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.workflows import tuning_workers
from autoprune.workflows.tuning import Tuning, tune
from autoprune.workflows.tuning_state import state_file, take_over
from autoprune.workflows.tuning_workers import TuningJob, WorkerJob, WorkerTuning, tune_together
from tests.helpers.detectors import build
from tests.helpers.world import SIZE, write_world

TUNING = Tuning(epochs=1, lr_scale=0.5, batch=2, seed=0)
TWO = replace(TUNING, epochs=2)
Whole = tuple[Path, dict[str, torch.Tensor]]
"""The folder of a fine-tune, and its weights."""
pytestmark = pytest.mark.filterwarnings("ignore")


class Notes(SilentListener):
    """Keeps notes and curves."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.curves: set[str] = set()
        self.epochs: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def log(self, step: int, values: Any) -> None:
        self.curves |= set(values)
        self.epochs.append(step)


class Elsewhere:
    """Computes with a copy of the function, as a worker holds it; something happens before."""

    def __init__(self, before: Any = lambda: None) -> None:
        self.usage = Usage(workers=2)
        self.before = before
        self.asked: list[Any] = []

    def map(self, function: Any, items: Any) -> Iterator[Any]:
        copy = cloudpickle.loads(cloudpickle.dumps(function))
        self.before()
        self.asked = list(items)
        return map(copy, self.asked)


def opened(world: Path) -> UltralyticsAdapter:
    torch.set_num_threads(1)
    return UltralyticsAdapter.load(world / "best.pt", data=world / "data" / "data.yaml", image_size=SIZE)


@pytest.fixture
def adapter(tmp_path: Path) -> UltralyticsAdapter:
    (tmp_path / "world").mkdir()
    return opened(write_world(tmp_path / "world"))


def jobs(folder: Path, *names: str) -> list[TuningJob]:
    for name in names:
        (folder / name).mkdir(exist_ok=True)
    return [TuningJob(lambda: build(16).eval(), folder / name, TUNING, {"name": name}, name) for name in names]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a fine-tune of `TWO` epochs leaves here that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "run").mkdir()
    tuning = {"tuning": TWO, "notes": {}, "listener": SilentListener()}
    return folder / "run", tune(opened(write_world(folder)), build(16).eval(), folder / "run", **tuning).state_dict()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def finished(adapter: UltralyticsAdapter, folder: Path, whole: Whole) -> bool:
    weights = adapter.reopen(folder / "model.pt").state_dict()
    return files(folder) == files(whole[0]) and all(torch.equal(one, whole[1][key]) for key, one in weights.items())


def test_a_worker_leaves_what_a_fine_tune_here_leaves(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    """With data that it was sent, since it does not see the files."""
    heard, runner, data = Notes(), Elsewhere(), tmp_path / "world" / "data"
    (tmp_path / "here").mkdir()
    here = tune(adapter, build(16).eval(), tmp_path / "here", tuning=TUNING, notes={}, listener=heard)
    runner.before = lambda: data.rename(tmp_path / "hidden")
    tune_together(runner, adapter, jobs(tmp_path, "a", "b"), heard, ship_data=True)
    for name in ("a", "b"):
        assert all(
            torch.equal(tensor, here.state_dict()[key])
            for key, tensor in adapter.reopen(tmp_path / name / "model.pt").state_dict().items()
        )
        assert files(tmp_path / name) == files(tmp_path / "here")
        assert f"{name}/mAP50-95" in heard.curves
    assert any("The data set goes to the workers once: " in note for note in heard.notes)
    runner.asked = []
    tune_together(runner, adapter, jobs(tmp_path, "a", "b"), heard, ship_data=False)
    assert runner.asked == [], "what is there already is left"


def test_one_fine_tune_alone_or_one_without_workers_is_left_to_this_process(
    adapter: UltralyticsAdapter, tmp_path: Path
) -> None:
    runner = Elsewhere()
    tune_together(runner, adapter, jobs(tmp_path, "a"), SilentListener(), ship_data=False)
    assert runner.asked == []


def test_a_worker_without_the_data_says_how_it_gets_them(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    tuning = WorkerTuning(Shared(adapter), Shared(None), Shared(None))
    job = WorkerJob(build(16), TUNING, {}, tmp_path / "elsewhere")
    (tmp_path / "world" / "data").rename(tmp_path / "hidden")
    with pytest.raises(DataError, match=r"able to read the data set, and on one .*or send them with `ship_data`"):
        tuning(job)


def test_a_fine_tune_goes_on_where_its_worker_died(
    adapter: UltralyticsAdapter, tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the next one sees the run's folder, and to the last bit; the file for it is gone in the end."""
    heard, runner = Notes(), Elsewhere()
    wanted = [replace(job, tuning=TWO) for job in jobs(tmp_path, "a", "b")]
    ended: list[Path] = []
    keep = tuning_workers.keep

    def killed_in_the_second_epoch_of_the_first(folder: Path, state: Path) -> None:
        keep(folder, state)
        ended.append(state.parent)
        if len(ended) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(tuning_workers, "keep", killed_in_the_second_epoch_of_the_first)
    with pytest.raises(KeyboardInterrupt):
        tune_together(runner, adapter, wanted, heard, ship_data=False)
    tune_together(runner, adapter, wanted[:1], heard, ship_data=False)  # the only one left, but begun by a worker
    tune_together(runner, adapter, wanted, heard, ship_data=False)
    assert [folder.name for folder in ended] == ["a", "a", "b", "b"]
    assert finished(adapter, tmp_path / "a", whole)
    assert finished(adapter, tmp_path / "b", whole)


class Killed(Notes):
    """Ends a fine-tune after its first epoch."""

    def log(self, step: int, values: Any) -> None:
        raise KeyboardInterrupt


def test_what_workers_have_begun_goes_on_without_them(
    adapter: UltralyticsAdapter, tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [replace(job, tuning=TWO) for job in jobs(tmp_path, "a", "b")]
    keep = tuning_workers.keep

    def killed(folder: Path, state: Path) -> None:
        keep(folder, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning_workers, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        tune_together(Elsewhere(), adapter, wanted, SilentListener(), ship_data=False)
    heard = Notes()
    tune(adapter, build(16).eval(), tmp_path / "a", tuning=TWO, notes={}, listener=heard)
    assert heard.epochs == [2]
    assert finished(adapter, tmp_path / "a", whole)


def test_what_was_begun_here_goes_on_with_workers(
    adapter: UltralyticsAdapter, tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, ended = [replace(job, tuning=TWO) for job in jobs(tmp_path, "a", "b")], []
    with pytest.raises(KeyboardInterrupt):
        tune(adapter, build(16).eval(), tmp_path / "a", tuning=TWO, notes={}, listener=Killed())
    monkeypatch.setattr(tuning_workers, "keep", lambda folder, state: ended.append(state.parent.name))
    tune_together(Elsewhere(), adapter, wanted, SilentListener(), ship_data=False)
    assert ended == ["a", "b", "b"]
    assert finished(adapter, tmp_path / "a", whole)


def test_a_kill_before_a_worker_s_file_was_removed_leaves_it_to_the_resume(
    adapter: UltralyticsAdapter, tmp_path: Path, whole: Whole
) -> None:
    shutil.copytree(whole[0], tmp_path / "whole")
    (job,) = jobs(tmp_path, "whole")
    state = state_file(job.folder)
    (job.folder / "finetune" / "results.csv").write_text("newer")
    tune(adapter, job.pruned(), job.folder, tuning=TWO, notes={}, listener=SilentListener())
    assert not state.exists()
    assert (job.folder / "finetune" / "results.csv").read_text() == "newer"
    assert finished(adapter, job.folder, whole)


def test_only_a_worker_s_file_is_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "worker-data.zip").write_bytes(b"of the user")
    take_over(tmp_path, wanted=True)
    assert (tmp_path / "worker-data.zip").exists()


def test_a_worker_that_does_not_see_the_run_leaves_nothing_there(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.zip"
    tuned = WorkerTuning(Shared(adapter), Shared(None), Shared(None))(WorkerJob(build(16), TUNING, {}, elsewhere))
    assert "model.pt" in tuned.fetch()
    assert not elsewhere.exists()


def test_workers_of_a_machine_unpack_the_data_once(
    adapter: UltralyticsAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapter.data is not None
    packed, unpack, unpacked = pack(adapter.data), shipping.unpack, []

    def slow(packed: shipping.Packed, folder: Path) -> Path:
        unpacked.append(folder)
        time.sleep(0.1)
        return unpack(packed, folder)

    monkeypatch.setattr(shipping, "unpack", slow)
    with ThreadPoolExecutor(4) as workers:
        places = set(workers.map(lambda _: unpack_once(packed, tmp_path / "node"), range(4)))
    assert len(unpacked) == 1
    assert places == {tmp_path / "node" / "data" / "data.yaml"}


def test_the_data_are_removed_when_they_are_forgotten(
    adapter: UltralyticsAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    assert adapter.data is not None
    tuning = WorkerTuning(Shared(adapter), Shared(None), Shared(pack(adapter.data)))
    for _ in range(2):
        tuning(WorkerJob(build(16), TUNING, {}, tmp_path / "elsewhere.zip"))
        assert [path.name for path in (tmp_path / "node").iterdir()] == [tuning.name], "what is trained in is gone"
    del tuning
    assert not list((tmp_path / "node").iterdir())


def test_data_without_files_are_not_sent(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    bare = UltralyticsAdapter.load(tmp_path / "world" / "best.pt", image_size=SIZE)
    with pytest.raises(DataError, match="`ship_data` sends the files of a data set, and that of best"):
        tune_together(Elsewhere(), bare, jobs(tmp_path, "a", "b"), SilentListener(), ship_data=True)


@pytest.mark.parametrize("kind", [CompareConfig, NetAdaptConfig])
@pytest.mark.parametrize("workers", [None, "0"])
def test_data_are_sent_to_workers_only(kind: Any, workers: str | None) -> None:
    with pytest.raises(ConfigError, match="`ship_data` sends the data set to `workers`, which are not given"):
        kind(budget=("flops=50%",), ship_data=True, workers=workers)
