"""The Gymnasium environment of a real network, for agents of one's own."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gymnasium
import numpy as np
import torch

from autoprune.api.commands import make_config
from autoprune.api.network import Network, options_of
from autoprune.config import SearchConfig
from autoprune.envs import CHANNEL_PRUNING
from autoprune.envs.problem import PruningProblem
from autoprune.listener import PythonListener, hearing
from autoprune.strategies.prior import find_prior
from autoprune.workflows.call import Caller, located
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.run import PruningRun, with_model
from autoprune.workflows.strategies import problem_of, scores_of

PRIOR_EVALUATIONS = 100
"""As a search of the default length, a prior takes half as long as this many evaluations."""


def make_env(
    network: Network | str | Path | None = None,
    *,
    budget: str | Sequence[str],
    rule: str = "projected",
    prior: bool = False,
    render_mode: str | None = None,
    **options: Any,
) -> gymnasium.Env[Any, Any]:
    """Make the Gymnasium environment in which the agents of autoprune search a network.

    An episode walks the network's units; each action decides how many channels one unit keeps. The reward at the end
    is the score of the pruned network, compensated: ``1 - loss / dense loss`` on training images. See
    `autoprune.envs.pruning_env.PruningEnv` for states and actions. It can be sent to the processes of
    stable-baselines3's ``SubprocVecEnv``.

    Args:
        network: a `Network`, or the path of its file; by default the bundled demonstration detector.
        budget: the limits that every episode ends within, as for `search`.
        rule: how actions meet the budget: ``projected`` or ``capped`` (AMC's own).
        prior: begin at the widths that regrowth finds, which takes the time of some 50 candidates, in place of one
            ratio for all units.
        render_mode: ``ansi`` for a line per unit, or None.
        options: of `search` that say how candidates are made and scored, such as ``images``, ``criterion``,
            ``round_to``, ``runtime``, ``data``, ``imgsz``. ``threads`` are torch's until the environment is closed.

    Raises:
        AutopruneError: as `search`.

    Example:
        >>> env = ap.make_env("best.pt", data="data.yaml", budget="flops=60%")
        >>> observation, info = env.reset(seed=0)
        >>> ended = False
        >>> while not ended:
        ...     observation, reward, ended, truncated, info = env.step(env.action_space.sample())
        >>> info["costs"]["flops"] <= 0.6 * ap.load("best.pt", data="data.yaml").costs()["flops"]
        True
    """
    folder = Path(mkdtemp(prefix="autoprune-env-"))
    threads = torch.get_num_threads()
    with ExitStack() as kept, ExitStack() as failed:
        failed.callback(torch.set_num_threads, threads)
        kept.callback(shutil.rmtree, folder, ignore_errors=True)
        values = {**options_of(network), **options, "budget": budget, "rule": rule, "out": folder / "run"}
        config = located(make_config("search", values), PythonListener())
        assert isinstance(config, SearchConfig)
        caller = Caller("autoprune.make_env(…)", lambda *_: "autoprune.make_env(…)")
        run_folder = RunFolder.open("search", config, caller)
        kept.callback(run_folder.journal.close)
        with hearing(PythonListener()):
            problem = _problem(with_model(config), run_folder, prior=prior)
        env = gymnasium.make(
            CHANNEL_PRUNING, problem=problem, rule=config.rule.value, render_mode=render_mode, disable_env_checker=True
        )
        weakref.finalize(problem.score, kept.pop_all().close)  # as long as something can be scored
        failed.pop_all()
        return _RestoringThreads(env, threads)


class _RestoringThreads(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that sets torch's threads back when it is closed.

    Args:
        env: the environment.
        threads: how many there were before it was made.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], threads: int) -> None:
        super().__init__(env)
        self._threads = threads

    def close(self) -> None:
        """Close the environment, and set the threads back."""
        super().close()
        torch.set_num_threads(self._threads)


@torch.enable_grad()  # whatever a notebook has switched off
def _problem(config: SearchConfig, folder: RunFolder, *, prior: bool) -> PruningProblem:
    """Return the problem of a search whose scores are kept in a folder."""
    listener = PythonListener()
    run = PruningRun(config, folder, listener)
    parsed = config.lowest
    limits = run.binding_limits(parsed, run.dense(validate=False))
    latency_constraints = LatencyConstraints(run.estimators, limits)
    constraint = run.constrain(parsed, limits, latency_constraints)
    uniform = np.zeros(len(constraint.space))
    constraint = latency_constraints.settled(constraint, uniform)
    evaluator = run.evaluator()
    score = scores_of(evaluator)
    if not prior:
        return problem_of(constraint, score, uniform, uniform)
    found = find_prior(constraint, evaluator.gains, score, listener, evaluations=PRIOR_EVALUATIONS)
    return problem_of(constraint, score, found.target_log_ratios, found.sensitivity)
