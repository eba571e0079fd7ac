from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import pytest

from autoprune.arrays import Array
from autoprune.envs.pruning_env import PruningEnv
from autoprune.envs.rules import Capped, Projected
from autoprune.strategies._base import Candidate, SearchTask, search
from autoprune.strategies.prior import SearchPrior
from autoprune.strategies.random import RandomStrategy
from autoprune.strategies.rl.agents import AgentKind, AgentStrategy, walk_prior
from autoprune.strategies.rl.learners import build, exploration_of, walk_episode
from autoprune.strategies.rl.settings import DDPGSettings, PPOSettings, Settings
from autoprune.strategies.rl.view import AgentView, MakeEnv, NoExploration, RunningScale, TruncatedNoise
from tests.helpers.toy import OPTIMA, Toy, make_toy

TOY = make_toy(6, seed=3)


def best_of_agent(settings: Settings, toy: Toy, *, evaluations: int, seed: int) -> float:
    strategy = AgentStrategy(toy.env, settings, evaluations=evaluations, seed=seed)
    return search(strategy, toy.score, constraint=toy.constraint, evaluations=evaluations).best.score


def best_of_random(toy: Toy, *, evaluations: int, seed: int) -> float:
    strategy = RandomStrategy(toy.constraint, seed=seed)
    return search(strategy, toy.score, constraint=toy.constraint, evaluations=evaluations).best.score


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AgentKind.PPO, AgentKind.DDPG])
def test_agents_beat_random_search_over_five_seeds(kind: AgentKind) -> None:
    """Median over five problems, each with its own seed, of the best score after 200 episodes over 40 units."""
    toys = {seed: make_toy(40, seed=seed) for seed in OPTIMA}
    agents = [best_of_agent(kind.settings, toy, evaluations=200, seed=seed) for seed, toy in toys.items()]
    control = [best_of_random(toy, evaluations=200, seed=seed) for seed, toy in toys.items()]
    assert median(agents) > median(control)
    for seed, score in zip(toys, agents, strict=True):
        assert -score >= OPTIMA[seed] - 1e-4, "nothing is better than the optimum"


@pytest.mark.slow
def test_ppo_beats_random_search_on_a_small_problem() -> None:
    toys = {seed: make_toy(12, seed=seed) for seed in range(3)}
    agents = [best_of_agent(AgentKind.PPO.settings, toy, evaluations=80, seed=seed) for seed, toy in toys.items()]
    assert median(agents) > median(best_of_random(toy, evaluations=80, seed=seed) for seed, toy in toys.items())


def test_deviations_that_rounding_swallows_grow() -> None:
    toy = make_toy(12, seed=0)
    swallowed = replace(PPOSettings(), log_std=-9.0)

    strategy = AgentStrategy(toy.env, swallowed, evaluations=150, seed=0)
    tried = [one.allocation for one in search(strategy, toy.score, constraint=toy.constraint, evaluations=150).history]
    assert len(set(tried[-30:])) > 2 * len(set(tried[:30]))


def test_one_unit_and_one_candidate_at_a_time_are_enough_for_ppo() -> None:
    toy = make_toy(1, seed=0)
    strategy = AgentStrategy(toy.env, replace(PPOSettings(), episodes=1), evaluations=6, seed=0)
    found = search(strategy, toy.score, constraint=toy.constraint, evaluations=6)
    assert all(toy.constraint.holds(np.array(one.allocation)) for one in found.history)


def view(*, marks: bool = False, rule: type = Projected, episodes: int = 1) -> AgentView:
    return AgentView(
        partial(TOY.env, rule), episodes=episodes, score=TOY.score, exploration=NoExploration(), marks=marks, scale=None
    )


def test_the_replay_buffer_holds_executed_actions_under_the_capped_rule() -> None:
    settings = DDPGSettings(random_share=0.5)
    noise = TruncatedNoise(sigma=0.5, decay=1.0, random_episodes=3, seed=0)
    seen: list[float] = []

    class Spy(AgentView):
        def step_wait(self) -> object:
            outcome = super().step_wait()
            seen.append(float(outcome[3][0]["executed_action"][0]))
            return outcome

    agent = build(
        settings,
        Spy(partial(TOY.env, Capped), episodes=1, score=TOY.score, exploration=noise, marks=False, scale=None),
        evaluations=6,
        seed=0,
    )
    agent.learn(6 * 6)
    buffer = agent.replay_buffer  # type: ignore[attr-defined]
    assert buffer.actions[: len(seen), 0, 0] == pytest.approx(seen)
    prior = TOY.env(Capped).prior_actions
    ratios = [np.interp(row, (-1, 0, 1), (0, prior[step], 1)) for step, row in enumerate(np.reshape(seen, (-1, 6)).T)]
    counts = np.transpose(ratios) * TOY.space.dense
    assert counts == pytest.approx(np.round(counts), abs=1e-4), "executed actions are widths that exist"
    assert all(TOY.constraint.holds(np.round(row).astype(np.int64)) for row in counts)


@pytest.mark.parametrize("kind", [AgentKind.DDPG, AgentKind.TD3])
def test_actor_and_critic_learn_at_amcs_rates_to_the_end(kind: AgentKind) -> None:
    agent = build(kind.settings, view(), evaluations=4, seed=0)
    agent.learn(6 * 4)
    assert agent._n_updates > 0  # type: ignore[attr-defined]
    assert {group["lr"] for group in agent.actor.optimizer.param_groups} == {1e-4}  # type: ignore[attr-defined]
    assert {group["lr"] for group in agent.critic.optimizer.param_groups} == {1e-3}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [AgentKind.DDPG, AgentKind.TD3])
def test_the_noise_is_amcs_in_its_share_of_the_actions_box(kind: AgentKind) -> None:
    """AMC: a standard deviation of 0.5 where keep ratios lie in (0, 1]."""
    exploration = exploration_of(kind.settings, evaluations=4, seed=0)
    exploration.episode_ended()  # the random one
    env = view()
    width = float((env.action_space.high - env.action_space.low).item())  # type: ignore[attr-defined]
    assert exploration.noise / width == 0.5
    exploration.episode_ended()
    assert exploration.noise / width == pytest.approx(0.5 * 0.95)


def test_the_critics_target_is_amcs() -> None:
    """The final reward at every step, and the next state's value but after the last."""
    agent = build(DDPGSettings(random_share=1.0, baseline=0.0), view(), evaluations=4, seed=0)
    agent.learn(6 * 4)
    buffer = agent.replay_buffer  # type: ignore[attr-defined]
    scores = buffer.rewards[5:24:6, 0]
    samples = buffer._get_samples(np.arange(24))
    assert samples.rewards.flatten().tolist() == pytest.approx(np.repeat(scores / scores.std(), 6).tolist())
    assert samples.dones.flatten().tolist() == [0, 0, 0, 0, 0, 1] * 4
    assert np.array_equal(samples.next_observations[:5], samples.observations[1:6])


def test_the_baseline_is_a_moving_average_of_the_batches_rewards() -> None:
    agent = build(DDPGSettings(random_share=1.0, baseline=0.5), view(), evaluations=4, seed=0)
    agent.learn(6 * 4)
    buffer = agent.replay_buffer  # type: ignore[attr-defined]
    scores = buffer.rewards[5:24:6, 0] / buffer.rewards[5:24:6, 0].std()
    first, second = (buffer._get_samples(np.arange(6 * episode, 6 * episode + 6)).rewards for episode in (0, 1))
    assert first.flatten().tolist() == pytest.approx([0.0] * 6)
    assert second.flatten().tolist() == pytest.approx([0.5 * (scores[1] - scores[0])] * 6, abs=1e-6)


def test_replayed_rewards_without_bootstrapping_are_whole_episodes_in_standard_deviations() -> None:
    settings = DDPGSettings(random_share=1.0, baseline=0.0, bootstrap=False)
    agent = build(settings, view(), evaluations=4, seed=0)
    agent.learn(6 * 4)
    buffer = agent.replay_buffer  # type: ignore[attr-defined]
    scores = buffer.rewards[5:24:6, 0]
    samples = buffer._get_samples(np.arange(24))
    assert samples.rewards.flatten().tolist() == pytest.approx(np.repeat(scores / scores.std(), 6).tolist())
    assert samples.dones.min() == 1, "every return reaches the episode's end"


def test_marks_tell_the_steps_apart() -> None:
    env = view(marks=True, episodes=2)
    states = np.asarray(env.reset())
    for step in range(6):
        assert np.array_equal(states[:, -6:], np.repeat(np.eye(6)[step][None], 2, axis=0))
        states, _, dones, infos = env.step(np.zeros((2, 1), dtype=np.float32))
    assert dones.all()
    assert env.observation_space.contains(infos[0]["terminal_observation"])
    assert np.array_equal(states, env.reset())


def test_the_prior_is_walked_into_transitions() -> None:
    transitions = walk_prior(view())
    assert len(transitions) == 6
    assert [bool(transition["done"][0]) for transition in transitions] == [False] * 5 + [True]
    expected = TOY.score([TOY.constraint.allocation(np.zeros(6))])
    assert transitions[-1]["reward"] == pytest.approx(expected)


@pytest.mark.parametrize("rule", [Projected, Capped])
def test_an_agent_that_knows_nothing_begins_at_the_prior(rule: type) -> None:
    problem = replace(TOY.problem(prior=1.5), score=None)
    env = AgentView(
        lambda: PruningEnv(problem, rule=rule),
        episodes=1,
        score=TOY.score,
        exploration=NoExploration(),
        marks=False,
        scale=None,
    )
    for walked in (walk_episode(env, lambda _: np.zeros((1, 1), dtype=np.float32)), walk_prior(env)):
        found = walked[-1]["infos"][0]["allocation"]
        assert found == TOY.constraint.allocation(problem.prior)


@pytest.mark.parametrize("rule", [Projected, Capped])
def test_ppo_looks_around_a_good_prior(rule: type) -> None:
    """The first episodes stay close to a prior that is worth more than what chance finds far from it."""
    toy = make_toy(12, seed=0)
    problem = replace(toy.problem(), score=None, prior=toy.problem(prior=0.5).prior)
    task = SearchTask(
        constraint=toy.constraint,
        evaluations=6,
        prior=SearchPrior(problem.sensitivity, problem.prior, (), 0),
        environment=lambda prior, sensitivity: partial(
            PruningEnv, replace(problem, prior=prior, sensitivity=sensitivity), rule=rule
        ),
    )
    tried = search(AgentKind.PPO.alone(task), toy.score, constraint=toy.constraint, evaluations=6).history
    log_ratios = np.array([toy.space.log_ratios(one.allocation) for one in tried])
    assert np.abs(log_ratios[1:] - log_ratios[0]).mean() < 0.2


def test_an_agent_starts_from_the_best_that_holds_the_budget() -> None:
    """What a prior tried before the budget became tighter may score best and hold it no longer."""
    toy = make_toy(12, seed=0)
    uniform, dense = (toy.constraint.allocation(np.zeros(12)), toy.space.allocation(toy.space.dense))
    start, too_wide = (Candidate(one, toy.score([one])[0]) for one in (uniform, dense))
    seen: list[Array] = []

    def environment(prior: Array, sensitivity: Array) -> MakeEnv:
        seen.append(prior)
        return toy.env

    prior = SearchPrior(np.zeros(12), np.zeros(12), (too_wide,), 1)
    AgentKind.PPO.make(
        SearchTask(constraint=toy.constraint, evaluations=1, prior=prior, start=(start,), environment=environment)
    )
    assert seen[0] == pytest.approx(toy.space.log_ratios(uniform))


def test_rewards_are_scaled_by_what_was_seen() -> None:
    scale = RunningScale()
    assert scale(np.array([-3.0])) == pytest.approx([0.0])
    rewards = scale(np.array([-1.0, -2.0]))
    assert rewards == pytest.approx([1.0 / np.std([-3, -1, -2]), 0.0])


def test_an_agent_hands_on_its_noise_before_every_evaluation() -> None:
    figures: list[Mapping[str, float]] = []
    strategy = AgentStrategy(TOY.env, AgentKind.DDPG.settings, evaluations=7, seed=0, track=figures.append)
    search(strategy, TOY.score, constraint=TOY.constraint, evaluations=7)
    assert len([one for one in figures if "noise" in one]) == 7
    assert any(name != "noise" for one in figures for name in one)


def test_the_noise_of_ppo_is_the_spread_of_its_policy() -> None:
    figures: list[Mapping[str, float]] = []
    settings = AgentKind.PPO.settings
    assert isinstance(settings, PPOSettings)
    strategy = AgentStrategy(TOY.env, settings, evaluations=20, seed=0, track=figures.append)
    search(strategy, TOY.score, constraint=TOY.constraint, evaluations=20)
    noise = [one["noise"] for one in figures if "noise" in one]
    assert noise[1] == pytest.approx(np.exp(settings.log_std), rel=0.05)
    assert all(0 < one <= 1 for one in noise[1:])
