from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.envs.pruning_env import PruningEnv
from autoprune.errors import ConfigError
from autoprune.strategies._base import Candidate, Evaluate, Progress, SearchTask, Strategy, search
from autoprune.strategies.evolution import EvolutionStrategy
from autoprune.strategies.greedy import GreedyStrategy
from autoprune.strategies.polish import PolishStrategy
from autoprune.strategies.random import RandomStrategy
from autoprune.strategies.rl.agents import AgentKind, AgentStrategy
from autoprune.strategies.rl.learners import EpisodeReplayBuffer
from autoprune.strategies.rl.view import TruncatedNoise, truncated_normal
from autoprune.structure.space import Allocation
from tests.helpers.toy import Toy, make_toy

TOY = make_toy(6, seed=3)


def agent(kind: AgentKind = AgentKind.PPO, toy: Toy = TOY, *, evaluations: int = 8) -> AgentStrategy:
    return AgentStrategy(toy.env, kind.settings, evaluations=evaluations, seed=0)


# -- the loop ----------------------------------------------------------------------------------


def test_the_loop_reports_every_evaluation_and_the_best() -> None:
    seen: list[Progress] = []
    strategy = RandomStrategy(TOY.constraint, seed=0)
    result = search(strategy, TOY.score, constraint=TOY.constraint, evaluations=5, on_evaluation=seen.append)
    assert [progress.done for progress in seen] == [1, 2, 3, 4, 5]
    assert [progress.latest for progress in seen] == list(result.history)
    assert seen[-1].best == result.best == max(result.history, key=lambda candidate: candidate.score)


class Batches(Strategy):
    """Has batches of so many allocations scored."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes
        self.heard: list[int] = []

    def run(self, evaluate: Evaluate) -> None:
        for size in self.sizes:
            self.heard.append(len(evaluate([TOY.space.allocation(TOY.space.lower)] * size)))


@pytest.mark.parametrize(
    ("sizes", "evaluations", "scored", "heard"),
    [((3,), 9, 3, [3]), ((2, 2, 2), 4, 4, [2, 2]), ((2, 2, 2), 3, 3, [2]), ((0, 1), 9, 1, [0, 1]), ((5,), 3, 3, [])],
)
def test_the_loop_ends_with_the_strategy_or_with_the_evaluations(
    sizes: tuple[int, ...], evaluations: int, scored: int, heard: list[int]
) -> None:
    strategy = Batches(*sizes)
    found = search(strategy, TOY.score, constraint=TOY.constraint, evaluations=evaluations)
    assert len(found.history) == scored
    assert strategy.heard == heard


def test_the_loop_refuses_what_makes_no_sense() -> None:
    strategy = RandomStrategy(TOY.constraint, seed=0)
    with pytest.raises(ConfigError, match="at least 1 evaluation, got 0"):
        search(strategy, TOY.score, constraint=TOY.constraint, evaluations=0)
    with pytest.raises(ConfigError, match="One score is needed for each of 1 allocations"):
        search(strategy, lambda allocations: [], constraint=TOY.constraint, evaluations=3)
    with pytest.raises(ConfigError, match="nothing within the budget in 0 evaluations"):
        search(Batches(), TOY.score, constraint=TOY.constraint, evaluations=3)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["random", "greedy", "evolution", "polish", *(kind.value for kind in AgentKind)])
def test_a_score_that_is_not_finite_ends_any_search(name: str, score: float) -> None:
    constraint = TOY.constraint
    makers: dict[str, Callable[[], Strategy]] = {
        "random": lambda: RandomStrategy(constraint, seed=0),
        "greedy": lambda: GreedyStrategy(constraint, evaluations=9),
        "evolution": lambda: EvolutionStrategy(constraint, seed=0),
        "polish": lambda: PolishStrategy(constraint, seed=0),
    }
    strategy = makers[name]() if name in makers else agent(AgentKind(name), evaluations=9)
    calls = 0

    def breaking(allocations: Sequence[Allocation]) -> list[float]:
        nonlocal calls
        calls += 1
        return TOY.score(allocations) if calls == 1 else [score] * len(allocations)

    with pytest.raises(ConfigError, match=r"The score of \(\d.* must be a finite number, got -?(nan|inf);"):
        search(strategy, breaking, constraint=constraint, evaluations=9)


@pytest.mark.parametrize(("rollout", "batches"), [(None, [1, 5, 5, 5, 4]), (8, [1, 8, 8, 3]), (64, [1, 19])])
def test_ppo_has_as_many_candidates_scored_together_as_its_rollout_is_wide(
    rollout: int | None, batches: list[int]
) -> None:
    task = SearchTask(
        constraint=TOY.constraint, evaluations=20, rollout=rollout, environment=lambda log_ratios, sensitivity: TOY.env
    )
    asked: list[int] = []

    def score(allocations: Sequence[Allocation]) -> Sequence[float]:
        asked.append(len(allocations))
        return TOY.score(allocations)

    search(AgentKind.PPO.alone(task), score, constraint=TOY.constraint, evaluations=20)
    assert asked == batches


# -- random numbers ----------------------------------------------------------------------------


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


@pytest.mark.parametrize("kind", AgentKind)
def test_an_agent_and_its_surroundings_do_not_disturb_each_other(kind: AgentKind) -> None:
    def noisy(allocations: Sequence[Allocation]) -> list[float]:
        draws()
        torch.manual_seed(5)
        return TOY.score(allocations)

    calm = search(agent(kind), TOY.score, constraint=TOY.constraint, evaluations=8)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(11)
    expected = draws()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(11)
    threads = torch.get_num_threads()
    strategy = agent(kind)
    assert search(strategy, noisy, constraint=TOY.constraint, evaluations=8, on_evaluation=None) == calm
    assert draws() == expected
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("kind", [AgentKind.PPO, AgentKind.DDPG])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_an_evaluation_leaves_the_agent(kind: AgentKind, error: type[BaseException]) -> None:
    calls = 0

    def failing(allocations: Sequence[Allocation]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error("in the evaluation")
        return TOY.score(allocations)

    threads = torch.get_num_threads()
    with pytest.raises(error, match="in the evaluation"):
        search(agent(kind, evaluations=20), failing, constraint=TOY.constraint, evaluations=20)
    assert torch.get_num_threads() == threads


def test_an_error_in_the_environment_reaches_the_search() -> None:
    def make_env() -> PruningEnv:
        raise ConfigError("no environment")

    strategy = AgentStrategy(make_env, AgentKind.PPO.settings, evaluations=3, seed=0)
    with pytest.raises(ConfigError, match="no environment"):
        search(strategy, TOY.score, constraint=TOY.constraint, evaluations=3)


def test_candidates_are_scored_on_the_threads_that_were_set_and_agents_learn_on_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)

    def score(allocations: Sequence[Allocation]) -> list[float]:
        assert seen[-1] == 7
        return TOY.score(allocations)

    search(agent(evaluations=6), score, constraint=TOY.constraint, evaluations=6)
    assert seen[0] == 1
    assert seen[-1] == 7


# -- agents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AgentKind)
def test_the_first_candidate_is_the_prior_and_the_count_is_exact(kind: AgentKind) -> None:
    result = search(agent(kind, evaluations=9), TOY.score, constraint=TOY.constraint, evaluations=9)
    assert result.history[0].allocation == TOY.constraint.allocation(np.zeros(6))
    assert len(result.history) == 9


@pytest.mark.parametrize("kind", [AgentKind.DDPG, AgentKind.SAC])
def test_candidates_of_others_that_a_walk_misses_are_not_remembered(
    kind: AgentKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ``projected`` a walk ends on the budget: one that was far below it is not found again, and has no score."""
    reached = TOY.constraint.allocation(np.array([0.5, 0.0, 0.2, -0.3, 0.0, 0.1]))
    start = [Candidate(reached, -0.3), Candidate(TOY.space.allocation(TOY.space.lower), -3.0)]
    remembered: list[float] = []
    add = EpisodeReplayBuffer.add

    def spy(self: EpisodeReplayBuffer, *args: Any, **transition: Any) -> None:
        remembered.append(float(transition["reward"][0]) if transition else float(args[3][0]))
        add(self, *args, **transition)

    monkeypatch.setattr(EpisodeReplayBuffer, "add", spy)

    strategy = AgentStrategy(TOY.env, kind.settings, evaluations=3, seed=0, start=start)
    search(strategy, TOY.score, constraint=TOY.constraint, evaluations=3)
    assert remembered[6:12] == pytest.approx([0, 0, 0, 0, 0, -0.3])
    assert -3.0 not in remembered
    assert all(remembered[5::6]), "whatever is remembered ends with a score"


def test_noise_around_an_action_that_is_not_finite_is_refused_rather_than_drawn_for_ever() -> None:
    noise = TruncatedNoise(sigma=0.5, decay=0.9, random_episodes=0, seed=0)
    with pytest.raises(ConfigError, match="An agent's action must be a finite number, got nan; the agent has diverged"):
        noise(np.array([[0.1], [np.nan]]))


def test_truncated_noise_stays_in_the_box_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    drawn = truncated_normal(rng, np.full((5000, 1), 1.0), 0.5)
    assert np.abs(drawn).max() <= 1
    assert drawn.mean() == pytest.approx(1 - 0.5 * np.sqrt(2 / np.pi), abs=0.03)  # a half-normal, cut at −1
    noise = TruncatedNoise(sigma=0.5, decay=0.9, random_episodes=1, seed=0)
    assert np.isnan(noise.noise)
    noise.episode_ended()
    assert noise.noise == 0.5
    noise.episode_ended()
    assert noise.noise == pytest.approx(0.45)
