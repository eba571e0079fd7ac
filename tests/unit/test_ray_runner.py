"""How a batch is spread over workers, on a stand-in for Ray; and Ray itself, on one node and two (slow)."""

from __future__ import annotations

import gc
import os
import signal
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.errors import DeviceError
from autoprune.evaluation import ray_runner, ray_worker, runners
from autoprune.evaluation.ray_cluster import open_ray, room
from autoprune.evaluation.ray_runner import ATTEMPTS, LOST_SECONDS, RayRunner
from autoprune.evaluation.ray_worker import versions
from autoprune.evaluation.runners import Large, RunnerOptions, Shared, open_runner
from autoprune.listener import SilentListener, hearing
from tests.helpers.fake_ray import FakeRay, RayError, Reference


def squared(item: int) -> int:
    """Return the square; 13 has none."""
    if item == 13:
        raise ValueError("13 is refused")
    return item * item


class Images(list[int]):
    """Something large."""


def halves(item: int) -> Large[int, list[int]]:
    """Return an answer with a large part."""
    return Large.of(item, [item // 2, item // 2])


def nth(images: Shared[list[int]], place: int, *, number: int) -> int:
    """Return a value of what is shared."""
    return images.value[place] + number


def runner_on(fake: FakeRay, monkeypatch: pytest.MonkeyPatch, *, workers: int = 2) -> RayRunner:
    monkeypatch.setattr(ray_runner, "time", SimpleNamespace(perf_counter=lambda: fake.now))
    return RayRunner(fake, workers, RunnerOptions(), {"num_cpus": 1})


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(1, 5),
    seconds=st.lists(st.floats(0.01, 20.0), min_size=1, max_size=12),
    deadly=st.sets(st.integers(0, 4), max_size=3),
    cancels=st.booleans(),
)
def test_answers_come_in_the_order_of_asking(
    workers: int, seconds: list[float], deadly: set[int], cancels: bool
) -> None:
    """Whatever a worker needs for an item, and if some of the first workers die of their first one."""
    fake = FakeRay(
        lambda worker, item: seconds[(item + worker) % len(seconds)], lambda worker, item: worker in deadly, cancels
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        runner = runner_on(fake, monkeypatch, workers=workers)
        items = list(range(20, 20 + len(seconds)))
        hopeless = len(deadly) >= ATTEMPTS  # all may have died of the same item
        try:
            assert list(runner.map(squared, items)) == [item * item for item in items]
        except DeviceError:
            assert hopeless
        assert len(fake.sent) == 1


def test_workers_compute_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    runner = runner_on(fake, monkeypatch, workers=4)
    assert list(runner.map(squared, range(20, 40))) == [item * item for item in range(20, 40)]
    assert fake.now == pytest.approx(5.0)
    assert str(runner.usage) == (
        "4 workers computed 20 tasks, 4.0 times as fast as one of them would have (100% of their time)"
    )


def test_the_progress_shows_what_the_workers_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, str]] = []

    class Bars(SilentListener):
        def progress(self, label: str, total: int) -> Any:
            assert (label, total) == ("Workers", 8)
            return nullcontext(lambda done, detail="": shown.append((done, detail)))

    with hearing(Bars()):
        list(runner_on(FakeRay(), monkeypatch, workers=4).map(squared, range(20, 28)))
    assert shown[-1][0] == 8
    assert "4 workers, 4.0 × one, 100% busy" in {detail for _, detail in shown}


def test_a_slow_worker_gets_fewer_items_and_its_last_one_is_computed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(lambda worker, item: 1000.0 if worker == 0 else 1.0)
    runner = runner_on(fake, monkeypatch)
    assert list(runner.map(squared, range(20, 30))) == [item * item for item in range(20, 30)]
    assert [worker for worker, _ in fake.computed] == [0, *[1] * 10]
    assert fake.now < 20.0
    assert runner.usage.repeated == 1
    assert list(runner.map(squared, [5, 6])) == [25, 36], "the slow one is still busy, and is not waited for"
    assert fake.now < 30.0
    kept = [item for one, (worker, item) in fake.handed.items() if worker == 0 and one.error is None]
    assert kept == [20], "what waited behind it was taken back, and it will not compute that in vain"


def test_a_worker_has_its_next_item_before_it_ends_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    runner = runner_on(fake, monkeypatch)
    list(runner.map(squared, [1, 2]))
    start = fake.now
    answers = runner.map(squared, range(20, 30))
    assert next(answers) == 400
    at_once = {handed for one, handed in fake.handed.items() if one.asked == start and handed[1] >= 20}
    assert at_once == {(0, 20), (1, 21), (0, 22), (1, 23)}
    assert [len(list(answers)), fake.now - start] == [9, 5.0]


def test_what_is_not_asked_for_any_more_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(lambda worker, item: 1.0 if item == 13 else 10.0)
    runner = runner_on(fake, monkeypatch)
    list(runner.map(squared, [1, 2]))
    answers = runner.map(squared, [13, 14, 15, 16])
    with pytest.raises(ValueError, match="13 is refused"):
        next(answers)
    assert list(runner.map(squared, [17, 18])) == [289, 324]
    assert 16 not in [item for _, item in fake.computed], "it waited behind 14"


def test_nothing_is_taken_back_from_a_cluster_that_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(lambda worker, item: 1.0 + item)
    answers = runner_on(fake, monkeypatch).map(squared, [1, 2, 3, 4, 5, 6])
    assert next(answers) == 1
    fake.ended = True
    answers.close()


def test_a_large_answer_is_fetched_and_computed_again_if_its_machine_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, kept = FakeRay(), []
    monkeypatch.setattr(ray_worker, "_put", lambda value: kept.append(Reference(0.0, answer=value)) or kept[-1])
    runner = runner_on(fake, monkeypatch, workers=1)
    first, second = runner.map(halves, [4, 6])
    assert (first.summary, second.summary, second.fetch()) == (4, 6, [3, 3])
    assert len(kept) == 2, "fetching computes nothing"
    kept[0].error = RayError("the object is lost")
    assert first.fetch() == [2, 2]
    assert runner.usage.repeated == 1


def test_a_worker_that_never_starts_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(starts=lambda worker: 1e9 * worker)
    runner = runner_on(fake, monkeypatch)
    for function in (squared, abs):
        assert list(runner.map(function, [2, 3, 4])) == [function(item) for item in (2, 3, 4)]
    assert {worker for worker, _ in fake.handed.values()} == {0}


def test_a_function_that_no_worker_can_hold_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(starts=lambda worker: -1.0)
    with pytest.raises(DeviceError, match=r"must be able to hold the network and its images, .*Its process was killed"):
        list(runner_on(fake, monkeypatch, workers=1).map(squared, [1]))
    assert fake.now == ATTEMPTS


def test_the_item_of_a_dead_worker_is_computed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(dies=lambda worker, item: worker == 1)
    assert list(runner_on(fake, monkeypatch).map(squared, range(20, 26))) == [item * item for item in range(20, 26)]
    assert {worker for worker, _ in fake.computed} == {0, 1, 2}


def test_an_item_that_workers_die_of_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(dies=lambda worker, item: item == 22)
    answers = runner_on(fake, monkeypatch).map(squared, range(20, 26))
    assert [next(answers), next(answers)] == [400, 441]
    with pytest.raises(DeviceError, match=r"3 died of the same one, the last with: Its process was killed; if memory"):
        next(answers)
    assert [item for _, item in fake.computed].count(22) == ATTEMPTS


def test_a_death_counts_against_the_item_that_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not against the one that waited behind it: twice behind 20, 21 may end a worker itself."""
    fake = FakeRay(dies=lambda worker, item: (worker, item) in {(0, 20), (1, 20), (2, 21)})
    runner = runner_on(fake, monkeypatch, workers=1)
    assert list(runner.map(squared, [20, 21, 22])) == [400, 441, 484]
    assert fake.computed == [(0, 20), (1, 20), (2, 20), (2, 21), (3, 21), (3, 22)]
    assert runner.usage.repeated == 6


def test_an_error_arrives_at_its_place_and_the_workers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_on(FakeRay(), monkeypatch)
    answers = runner.map(squared, [12, 13, 14])
    assert next(answers) == 144
    with pytest.raises(ValueError, match="13 is refused"):
        next(answers)
    assert list(runner.map(squared, [14])) == [196]


def test_a_function_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    runner = runner_on(fake, monkeypatch)
    assert list(runner.map(squared, [])) == []
    assert fake.sent == []
    for _ in range(3):
        list(runner.map(squared, [1, 2]))
    assert len(fake.sent) == 1
    assert list(runner.map(abs, [-3])) == [3]
    assert len(fake.sent) == 2


def test_what_functions_share_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, images = FakeRay(), list(range(1000))
    monkeypatch.setattr(ray_worker, "_get", lambda value: value)
    runner = runner_on(fake, monkeypatch)
    for number in range(3):
        assert list(runner.map(partial(nth, Shared(images), number=number), [5, 6])) == [5 + number, 6 + number]
    assert [len(sent) < 200 for sent in fake.sent if sent is not images] == [True] * 3
    assert [sent for sent in fake.sent if sent is images] == [images]


def test_what_no_function_shares_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, images = FakeRay(), Images(range(10))
    monkeypatch.setattr(ray_worker, "_get", lambda value: value)
    runner, known = runner_on(fake, monkeypatch), weakref.ref(images)
    list(runner.map(partial(nth, Shared(images), number=1), [5]))
    list(runner.map(abs, [5]))
    del images
    fake.sent.clear()
    gc.collect()
    assert known() is not None, "the next function may have it again"
    list(runner.map(squared, [5]))
    list(runner.map(abs, [5]))
    gc.collect()
    assert known() is None


def test_workers_forget_what_they_hold_when_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, images = FakeRay(), Images(range(10))
    monkeypatch.setattr(ray_worker, "_get", lambda value: Images(value))
    runner, held = runner_on(fake, monkeypatch), []
    monkeypatch.setattr(ray_worker, "Shared", lambda value: held.append(weakref.ref(value)) or Shared(value))
    list(runner.map(partial(nth, Shared(images), number=1), [5, 6]))
    assert [one() for one in held] == [images, images]
    runner.close()
    gc.collect()
    assert [one() for one in held] == [None, None]
    fake.ended = True
    runner.close()


def test_a_cluster_that_is_gone_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(lambda worker, item: 1e9, cpus=0.0)
    with pytest.raises(DeviceError, match="is gone"):
        list(runner_on(fake, monkeypatch).map(squared, [1]))
    assert LOST_SECONDS < fake.now < 2 * LOST_SECONDS


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = versions()
    runner_on(FakeRay(), monkeypatch).check_versions()
    with pytest.raises(DeviceError, match=rf"got torch 0\.1 there and {here['torch']} here"):
        runner_on(FakeRay(versions={**here, "torch": "0.1"}), monkeypatch).check_versions()


def test_workers_that_find_no_place_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runner_on(FakeRay(places=3), monkeypatch, workers=3).check_versions()
    with pytest.raises(DeviceError, match="3 workers must start, and after 600 s some have not"):
        runner_on(FakeRay(places=2), monkeypatch, workers=3).check_versions()


@given(st.integers(1, 9), st.integers(1, 9))
def test_all_workers_fit_on_the_gpus_that_they_share(workers: int, gpus: int) -> None:
    """A worker lies on one GPU."""
    nodes = [{"Alive": True, "Resources": {"CPU": 64.0}}]
    cluster = SimpleNamespace(available_resources=lambda: {"CPU": 64.0, "GPU": float(gpus)}, nodes=lambda: nodes)
    count, resources = room(cluster, RunnerOptions(str(workers), device="cuda:0"))
    assert count == workers <= gpus * int(1 / resources["num_gpus"] + 1e-9)
    assert room(cluster, RunnerOptions("auto", device="cuda"))[0] == gpus
    with pytest.raises(DeviceError, match=r"Ray hands out the GPUs, .* got cuda:1"):
        room(cluster, RunnerOptions(str(workers), device="cuda:1"))


def test_a_worker_has_its_threads_on_one_node() -> None:
    nodes = [{"Alive": alive, "Resources": {"CPU": 6.0}} for alive in (True, True, False)]
    cluster = SimpleNamespace(available_resources=lambda: {"CPU": 12.0}, nodes=lambda: nodes)
    assert room(cluster, RunnerOptions("auto", threads=4)) == (2, {"num_cpus": 4})
    with pytest.raises(DeviceError, match="must have 4 free CPUs for each worker"):
        room(cluster, RunnerOptions("3", threads=4))


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"needs the package ray, .*\[ray\]"), open_runner(RunnerOptions()):
        pass


# -- Ray itself ----------------------------------------------------------------------------------------------


def slept(item: float) -> tuple[float, int]:
    """Stand in for a candidate that takes so many seconds."""
    time.sleep(item)
    return item, os.getpid()


@pytest.fixture(scope="module")
def ray() -> Any:
    return pytest.importorskip("ray", reason="pip install ray")


@pytest.mark.slow
def test_workers_of_this_machine_are_processes_that_end_with_the_run(ray: Any) -> None:
    notes: list[str] = []
    with open_ray(RunnerOptions("2", notify=notes.append)) as runner:
        with pytest.warns(UserWarning, match="heard"):
            warnings.warn("heard", UserWarning, stacklevel=1)
        answers = list(runner.map(slept, [0.3] * 8))
        pids = {pid for _, pid in answers}
        assert len(pids) == 2
        assert os.getpid() not in pids
        os.kill(min(pids), signal.SIGKILL)
        assert [item for item, _ in runner.map(slept, [0.1] * 6)] == [0.1] * 6, "one was killed, another took its place"
    assert not ray.is_initialized()
    assert notes[-1].startswith("2 workers computed 14 tasks, ")
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture
def cluster(ray: Any) -> Iterator[Any]:
    """A head without CPUs and two nodes with one each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_node_that_leaves_takes_no_answer_with_it(ray: Any, cluster: Any) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    with open_ray(RunnerOptions(cluster.address)) as runner:
        answers = runner.map(slept, [0.5] * 10)
        assert next(answers)[0] == 0.5
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert [item for item, _ in answers] == [0.5] * 9


@pytest.mark.slow
def test_a_cluster_without_room_or_that_is_not_there_is_refused_at_once(ray: Any, cluster: Any) -> None:
    with (
        pytest.raises(DeviceError, match="must have 1 free CPUs for each worker, and has 0 in all"),
        open_ray(RunnerOptions(cluster.address)),
    ):
        pass
