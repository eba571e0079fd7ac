from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_sb3

from autoprune import envs
from autoprune.envs.observations import first_layer, unit_columns, unit_costs
from autoprune.envs.problem import PruningProblem
from autoprune.envs.pruning_env import PruningEnv
from autoprune.envs.rules import RULES, Capped, Projected
from autoprune.errors import ConfigError
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.space import Space
from tests.helpers.toy import LayerFlops, Toy, chain_graph, make_toy

TOY = make_toy(6, seed=3)
AMC_COLUMNS = {
    "index",
    "out_channels",
    "in_channels",
    "height",
    "width",
    "stride",
    "kernel",
    "cost",
    "reduced",
    "rest",
    "last_action",
}


def walk_through(env: PruningEnv, actions: Sequence[float]) -> tuple[float, dict[str, object]]:
    """Take all steps; return the last reward and info."""
    env.reset()
    for action in actions:
        _, reward, terminated, truncated, info = env.step(np.array([action]))  # type: ignore[arg-type]
        assert not truncated
        assert terminated or reward == 0
    assert terminated
    return reward, info


NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
in_any_number = st.floats(allow_nan=False, allow_infinity=False)


def test_it_is_registered_and_made_by_name() -> None:
    envs.register_envs()
    env = gymnasium.make("autoprune.envs:autoprune/ChannelPruning-v0", problem=TOY.problem())
    assert isinstance(env.unwrapped, PruningEnv)


@pytest.mark.parametrize("rule", [Projected, Capped])
def test_it_passes_both_checkers(rule: type) -> None:
    env = gymnasium.make(envs.CHANNEL_PRUNING, problem=TOY.problem(), rule=rule, render_mode="ansi").unwrapped
    check_gymnasium(env)
    if rule is Projected:
        check_sb3(env)
    else:  # AMC's action is a keep ratio; the checker would rather have [−1, 1], which our agents see
        with pytest.warns(UserWarning, match="symmetric and normalized"):
            check_sb3(env)


def test_the_state_has_amcs_columns_and_a_sensitivity() -> None:
    env = PruningEnv(replace(TOY.problem(), columns={"gamma": np.arange(6.0)}))
    assert set(env.columns) == AMC_COLUMNS | {"sensitivity", "gamma"}
    assert env.observation_space.shape == (13,)


@pytest.mark.parametrize("rule", RULES.values())
def test_states_are_scaled_and_follow_the_walk(rule: type) -> None:
    env = PruningEnv(TOY.problem(), rule=rule)
    column = {name: index for index, name in enumerate(env.columns)}
    state, _ = env.reset()
    assert state[column["index"]] == 0
    assert state[column["reduced"]] == 0
    reduced, rest = [state[column["reduced"]]], [state[column["rest"]]]
    for step in range(6):
        state = env.step(np.array([env.action_space.low[0]], dtype=np.float32))[0]
        assert env.observation_space.contains(state)
        assert state[column["index"]] == pytest.approx(min(step + 1, 5) / 5)
        reduced.append(state[column["reduced"]])
        rest.append(state[column["rest"]])
    assert reduced == sorted(reduced)
    assert rest == sorted(rest, reverse=True)
    assert rest[-1] == pytest.approx(0, abs=1e-6)
    cost, space = TOY.cost, TOY.space
    if rule is Capped:
        assert reduced[-1] == pytest.approx(1 - float(cost(space.lower) / cost(space.dense)), abs=1e-6)


def test_a_units_cost_is_that_of_all_layers_it_touches() -> None:
    space = Space(chain_graph([16, 32, 24]), round_to=8)
    cost = LayerFlops(space)
    sizes = [3, 16, 32, 24, 8]
    each = [
        2 * 9 * layer.out_hw[0] * layer.out_hw[1] * sizes[index] * sizes[index + 1]
        for index, layer in enumerate(space.graph.layers)
    ]
    problem = PruningProblem(
        space=space,
        constraint=Constraint(space, [CostLimit(cost, float(cost(space.dense)))]),
        cost=cost,
        score=lambda allocations: [0.0] * len(allocations),
        sensitivity=np.zeros(3),
        prior=np.zeros(3),
    )
    assert unit_costs(problem) == pytest.approx([each[0] + each[1], each[1] + each[2], each[2] + each[3]])
    columns = unit_columns(problem)
    assert list(columns["in_channels"]) == [3, 16, 32]
    assert list(columns["out_channels"]) == [16, 32, 24]


def test_the_first_producing_layer_is_found_by_channels_where_names_differ() -> None:
    graph = chain_graph([16, 32])
    unit = replace(graph.units[1], name="somewhere")
    found = first_layer(graph, unit)
    assert found is not None
    assert found.name == "conv1"


actions_of = st.lists(st.floats(-1.5, 1.5) | in_any_number, min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(actions=actions_of, share=st.floats(0.0, 1.0), seed=st.integers(0, 5), rule=st.sampled_from(list(RULES)))
def test_any_walk_ends_within_the_budget(actions: list[float], share: float, seed: int, rule: str) -> None:
    space, cost = make_toy(6, seed=seed).space, make_toy(6, seed=seed).cost
    lowest = float(cost(space.lower) / cost(space.dense))
    toy = make_toy(6, seed=seed, budget=lowest + share * (1 - lowest) + 1e-9)
    reward, info = walk_through(PruningEnv(toy.problem(), rule=RULES[rule]), actions)
    allocation = info["allocation"]
    assert isinstance(allocation, tuple)
    assert toy.constraint.holds(np.array(allocation))
    assert all(count in choices for count, choices in zip(allocation, toy.space.choices, strict=True))
    assert reward == pytest.approx(toy.score([allocation])[0])
    assert info["costs"] == toy.constraint.costs(np.array(allocation))


def test_projection_leaves_no_room_for_a_wider_unit() -> None:
    _, info = walk_through(PruningEnv(TOY.problem()), [0.3, -0.2, 0.9, -1.0, 0.0, 0.5])
    counts = np.array(info["allocation"])
    for unit in range(6):
        wider = TOY.space.next_up(counts, unit)
        if wider is not None:
            trial = counts.copy()
            trial[unit] = wider
            assert not TOY.constraint.holds(trial)


@settings(max_examples=30, deadline=None)
@given(actions=st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6))
def test_the_executed_action_of_a_capped_walk_reproduces_it(actions: list[float]) -> None:
    env = PruningEnv(TOY.problem(), rule=Capped)
    env.reset()
    executed = []
    for action in actions:
        *_, info = env.step(np.array([action], dtype=np.float32))
        executed.append(float(info["executed_action"][0]))
    _, again = walk_through(env, executed)
    assert again["allocation"] == info["allocation"]


def test_a_greedy_capped_walk_spends_the_budget_first_and_is_forced_to_the_bounds() -> None:
    _, info = walk_through(PruningEnv(TOY.problem(), rule=Capped), [1.0] * 6)
    ratios = np.array(info["allocation"]) / TOY.space.dense
    assert ratios[0] == 1
    assert ratios[-1] < 0.5


@pytest.mark.parametrize("rule", RULES.values())
def test_the_prior_actions_lead_to_the_projected_prior(rule: type) -> None:
    problem = TOY.problem(prior=1.5)
    env = PruningEnv(problem, rule=rule)
    _, info = walk_through(env, env.prior_actions)
    assert info["allocation"] == TOY.constraint.allocation(problem.prior)


@pytest.mark.parametrize("rule", RULES.values())
def test_an_allocation_is_found_again_by_its_actions(rule: type) -> None:
    env = PruningEnv(TOY.problem(), rule=rule)
    allocation = TOY.constraint.allocation(np.array([0.2, -0.1, 0.3, 0.0, -0.3, 0.1]))
    _, info = walk_through(env, env.actions_for(allocation))  # type: ignore[arg-type]
    assert info["allocation"] == allocation


@pytest.mark.parametrize("rule", RULES.values())
def test_without_a_score_the_end_tells_the_allocation_and_gives_nothing(rule: type) -> None:
    reward, info = walk_through(TOY.env(rule), [0.3] * 6)
    _, scored = walk_through(PruningEnv(TOY.problem(), rule=rule), [0.3] * 6)
    assert reward == 0
    assert info == {key: value for key, value in scored.items() if key != "score"}


def test_units_with_one_choice_are_not_walked_and_stay_as_they_are() -> None:
    space = Space(chain_graph([8, 32, 8, 64]), round_to=8)
    cost = LayerFlops(space)
    problem = PruningProblem(
        space=space,
        constraint=Constraint(space, [CostLimit(cost, 0.6 * float(cost(space.dense)))]),
        cost=cost,
        score=lambda allocations: [0.0],
        sensitivity=np.zeros(4),
        prior=np.zeros(4),
    )
    assert problem.walked == (1, 3)
    _, info = walk_through(PruningEnv(problem), [0.0, 0.5])
    allocation = info["allocation"]
    assert isinstance(allocation, tuple)
    assert (allocation[0], allocation[2]) == (8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sensitivity": np.full(6, 1.5)}, "must lie in"),
        ({"prior": np.zeros(5)}, "prior must hold one finite number for each of 6 units"),
        ({"columns": {"gamma": np.array([np.nan] * 6)}}, "gamma must hold"),
    ],
)
def test_a_problem_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TOY.problem(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", [[0] * 6, np.zeros(6, dtype=np.int64), (0.0,) * 6])
def test_a_prior_may_be_a_list_or_of_whole_numbers(prior: object) -> None:
    _, info = walk_through(PruningEnv(replace(TOY.problem(), prior=prior)), [0.3, -0.2, 0.1, 0.0, 0.5, -0.4])  # type: ignore[arg-type]
    _, expected = walk_through(PruningEnv(TOY.problem()), [0.3, -0.2, 0.1, 0.0, 0.5, -0.4])
    assert info["allocation"] == expected["allocation"]


def test_a_space_without_choices_is_refused() -> None:
    toy: Toy = make_toy(3, round_to=512, budget=1.0)
    with pytest.raises(ConfigError, match="nothing to search"):
        toy.problem()


# -- what makes no sense ----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    actions=st.lists(in_any_number, max_size=5), broken=st.sampled_from(NOT_FINITE), rule=st.sampled_from(list(RULES))
)
def test_an_action_that_is_not_finite_is_refused_at_any_step(actions: list[float], broken: float, rule: str) -> None:
    env = PruningEnv(TOY.problem(), rule=rule)
    env.reset()
    for action in actions:
        env.step(np.array([action]))  # type: ignore[arg-type]
    said = rf"action for conv{len(actions)} \(step {len(actions) + 1} of 6\) must be a finite number, got -?(nan|inf);"
    with pytest.raises(ConfigError, match=said):
        env.step(np.array([broken]))  # type: ignore[arg-type]


@pytest.mark.parametrize("action", ["wide", [], [0.1, 0.2], [[0.1, 0.2]], {"keep": 1}])
def test_an_action_that_is_no_number_is_refused(action: object) -> None:
    env = PruningEnv(TOY.problem())
    env.reset()
    with pytest.raises(ConfigError, match="takes one number, got"):
        env.step(action)  # type: ignore[arg-type]


@pytest.mark.parametrize("score", NOT_FINITE)
def test_a_score_that_is_not_finite_is_no_reward(score: float) -> None:
    problem = replace(TOY.problem(), score=lambda allocations: [score] * len(allocations))
    with pytest.raises(ConfigError, match=r"The score of \(\d.* must be a finite number, got -?(nan|inf);"):
        walk_through(PruningEnv(problem), [0.0] * 6)


def test_a_score_for_each_allocation_is_needed() -> None:
    problem = replace(TOY.problem(), score=lambda allocations: [])
    with pytest.raises(ConfigError, match="one number for each of 1 allocations"):
        walk_through(PruningEnv(problem), [0.0] * 6)


@pytest.mark.parametrize("problem", ["best.pt", None, 3])
def test_only_a_problem_is_a_problem(problem: object) -> None:
    with pytest.raises(ConfigError, match="problem must be a PruningProblem, got"):
        PruningEnv(problem)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["space", "constraint", "cost", "score"])
def test_the_parts_of_a_problem_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a .*, got 'best.pt'"):
        replace(TOY.problem(), **{name: "best.pt"})  # type: ignore[arg-type]


def test_a_rule_may_be_told_by_its_name() -> None:
    assert isinstance(PruningEnv(TOY.problem(), rule="capped").rule, Capped)
    made = gymnasium.make(envs.CHANNEL_PRUNING, problem=TOY.problem(), rule="capped").unwrapped
    assert made.action_space.low == 0  # type: ignore[attr-defined]
    for rule in ("Capped", 5):
        with pytest.raises(ConfigError, match="rule must be one of projected, capped or a class"):
            PruningEnv(TOY.problem(), rule=rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
def test_a_step_after_the_end_asks_for_a_reset(rule: str) -> None:
    env = PruningEnv(TOY.problem(), rule=rule)
    _, first = walk_through(env, [0.5] * 6)
    with pytest.raises(ConfigError, match=r"ended after 6 steps.*call reset\(\)"):
        env.step(np.array([0.5]))
    assert walk_through(env, [0.5] * 6)[1]["allocation"] == first["allocation"]


# -- what a user sees ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_line_is_rendered_for_every_decided_unit(rule: str) -> None:
    made = gymnasium.make(envs.CHANNEL_PRUNING, problem=TOY.problem(), rule=rule, render_mode="ansi")
    made.reset()
    assert made.render() == ""
    made.step(np.array([0.5], dtype=np.float32))
    assert re.fullmatch(rf"conv0: \d+ of {TOY.space.dense[0]}", str(made.render()))
    for _ in range(5):
        *_, info = made.step(np.array([0.5], dtype=np.float32))
    kept = zip(TOY.space.units, info["allocation"], strict=True)
    assert made.render() == "\n".join(f"{unit.name}: {count} of {unit.width}" for unit, count in kept)


def test_nothing_is_rendered_unasked_and_other_modes_are_refused() -> None:
    env = PruningEnv(TOY.problem())
    env.reset()
    assert env.render() is None
    with pytest.raises(ConfigError, match="render_mode must be ansi or None, got 'human'"):
        PruningEnv(TOY.problem(), render_mode="human")


def test_the_documentation_names_every_column(root: Path) -> None:
    text = (root / "docs" / "environment.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - set(RULES)
    assert told == set(PruningEnv(TOY.problem()).columns)
