"""A problem made of a real detector, handed to other processes as stable-baselines3's ``SubprocVecEnv`` does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

from autoprune.envs.problem import PruningProblem
from autoprune.envs.pruning_env import PruningEnv
from autoprune.evaluation.evaluator import Evaluator
from autoprune.journal import Journal
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.workflows.network import Network
from autoprune.workflows.strategies import scores_of
from tests.helpers.world import open_world

METRICS = ("flops", "params", "size", "channels")


@pytest.fixture(scope="module")
def network(tiny: Path) -> Network:
    return open_world(tiny)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(tmp_path / "journal.jsonl", {}) as journal:
        yield journal


@pytest.fixture
def problem(network: Network, journal: Journal) -> PruningProblem:
    """Half of every cost; candidates are scored, and journalled."""
    lock = threading.Lock()  # as a terminal's: it cannot be pickled
    evaluator = Evaluator(
        network.adapter, network.pruner, images=4, batch=2, seed=0, journal=journal, notify=lambda _: lock.release()
    )
    space, costs = network.space, network.static_costs
    return PruningProblem(
        space=space,
        constraint=Constraint(space, [CostLimit(costs[m], 0.6 * float(costs[m](space.dense))) for m in METRICS]),
        cost=costs["flops"],
        score=scores_of(evaluator),
        sensitivity=np.linspace(0, 1, len(space)),
        prior=np.zeros(len(space)),
    )


def walked(problem: PruningProblem) -> float:
    env = PruningEnv(problem)
    env.reset()
    for step in range(env.episode_steps):
        _, reward, *_ = env.step(np.array([step % 2], dtype=np.float32))
    return reward


def test_a_copy_scores_alike_and_leaves_the_journal_alone(problem: PruningProblem, journal: Journal) -> None:
    sent = cloudpickle.dumps(problem)
    before = journal.path.read_bytes()
    first, second = walked(cloudpickle.loads(sent)), walked(cloudpickle.loads(cloudpickle.dumps(problem)))
    assert journal.path.read_bytes() == before, "a worker has no journal"
    assert first == second == walked(problem)
    assert journal.path.read_bytes() != before


def test_a_copy_knows_what_was_scored_before(problem: PruningProblem, journal: Journal) -> None:
    expected = walked(problem)
    copy = cloudpickle.loads(cloudpickle.dumps(problem))
    computed: list[object] = []
    evaluator = copy.score.args[0]
    evaluator.pruner.materialise = lambda allocation: computed.append(allocation)
    assert walked(copy) == expected
    assert not computed


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_give_the_reward_that_this_process_gives(problem: PruningProblem, method: str) -> None:
    steps = len(problem.walked)
    workers = SubprocVecEnv([lambda: PruningEnv(problem)] * 2, start_method=method)
    try:
        workers.reset()
        for step in range(steps):
            _, rewards, dones, infos = workers.step(np.full((2, 1), step % 2, dtype=np.float32))
    finally:
        workers.close()
    assert dones.all()
    assert rewards == pytest.approx([walked(problem)] * 2, rel=1e-6)
    assert all(problem.constraint.holds(np.array(info["allocation"])) for info in infos)
