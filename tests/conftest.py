"""What every test shares: a private place for settings and caches, one thread, no network.

The environment is set when this file is imported, before anything imports torch or ultralytics,
so that child processes inherit it too.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

_ROOT = Path(__file__).resolve().parent.parent
_SCRATCH = Path(tempfile.mkdtemp(prefix="autoprune-tests-"))

os.environ.update(
    YOLO_CONFIG_DIR=str(_SCRATCH / "ultralytics"),  # ultralytics writes a settings file on import
    YOLO_OFFLINE="true",
    YOLO_AUTOINSTALL="false",
    AUTOPRUNE_CACHE=str(_SCRATCH / "cache"),
    OMP_NUM_THREADS="1",  # two threads on tiny tensors wait for each other, long where a core is busy
)
(_SCRATCH / "ultralytics").mkdir()

os.fsync = lambda descriptor: None  # no test cuts the power, and there are thousands of records
gc.set_threshold(20_000, 20, 20)  # an eighth of the time went into looking at the millions of objects of networks

settings.register_profile("autoprune", deadline=None)  # a busy machine is no failure
settings.load_profile("autoprune")


def pytest_collection_finish() -> None:
    """Leave what imports have made out of all later garbage collections: a training asks for two an epoch."""
    _leave_out_what_stays()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Do so again after each file, whose tests have filled caches that stay."""
    if nextitem is None or nextitem.path != item.path:
        _leave_out_what_stays()


def _leave_out_what_stays() -> None:
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is never released is reported as a leak by some libraries
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Undo what the last test did to torch's thread count, before any fixture of the next, a module's included.

    Commands with ``--threads`` set it, and Ultralytics' trainer lowers it.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see an idle machine, whatever else runs on this one, unless they choose another."""
    if "autoprune.workflows.latency" in sys.modules:
        from tests.helpers.load import IDLE, set_load

        set_load(monkeypatch, IDLE)
    elif "autoprune.latency.timing" in sys.modules:
        watch = SimpleNamespace(disturbs=lambda threads: False)
        for name in ("timing", "cache"):
            monkeypatch.setattr(f"autoprune.latency.{name}.LoadWatch", lambda: watch)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return _ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and detectors next to the project; the test is skipped without it."""
    folder = _ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}, which is absent")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny detector and a data set, see ``tests.helpers.world``."""
    from tests.helpers.world import write_world  # late: it imports ultralytics

    return write_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with everything that is not what it is given for, see ``tests.helpers.refusals``."""
    from tests.helpers.refusals import write_zoo

    return write_zoo(tmp_path_factory.mktemp("zoo"), tiny)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Path:
    """Run in an empty folder; networks are analysed once."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands measure on a device in closed form and analyse an architecture once, see ``tests.helpers.world``."""
    from tests.helpers.world import quick_commands

    with quick_commands(tmp_path_factory.mktemp("latency")):
        yield
