"""What the commands share that prune to a budget: the network, its costs, how candidates are scored and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from autoprune.budget import Budget
from autoprune.config import BudgetedConfig, PruningConfig, ReconstructingConfig, SparsifyConfig, WorkersConfig
from autoprune.demo import DEMO_IMAGE_SIZE, demo_weights, shapes_dataset
from autoprune.errors import BudgetUnreachableError, ConfigError
from autoprune.evaluation.evaluator import Evaluator
from autoprune.evaluation.runners import Runner, RunnerOptions, open_runner, runner_spec, usage_figures
from autoprune.image_size import ImageSize, SizeLike
from autoprune.listener import Listener
from autoprune.metrics import is_measured
from autoprune.results import Stage
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Allocation
from autoprune.training.extensions.distill import check_teacher
from autoprune.workflows import stages
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.latency import LatencyEstimator
from autoprune.workflows.latency_constraints import LatencyConstraints
from autoprune.workflows.network import Network, open_network, pin_threads, warn_of_skipped

DEFAULT_EPOCHS, DEMO_EPOCHS = 20, 3

Kind = TypeVar("Kind", bound=PruningConfig | SparsifyConfig)


def with_model(config: Kind) -> Kind:
    """Fill in the bundled detector and data set if no model is given, and how long to fine-tune."""
    if isinstance(config, BudgetedConfig):
        config = replace(config, finetune_epochs=finetune_epochs(config, demo=config.model is None))
    if config.model is not None:
        return config
    model, data, imgsz = demonstration(config.imgsz)
    return replace(config, model=model, data=data, imgsz=imgsz)


def finetune_epochs(config: BudgetedConfig, *, demo: bool) -> int:
    """Return how many epochs to fine-tune: as many as asked, else few of the bundled detector and enough of others."""
    if config.finetune_epochs is not None:
        return config.finetune_epochs
    return DEMO_EPOCHS if demo else DEFAULT_EPOCHS


def demonstration(imgsz: SizeLike | None = None, *, images: bool = True) -> tuple[Path, Path | None, ImageSize]:
    """Return the bundled detector, its data set if images are needed, and the image size, its own if none is given."""
    return (
        demo_weights(),
        shapes_dataset() if images else None,
        ImageSize.of(DEMO_IMAGE_SIZE if imgsz is None else imgsz),
    )


def dense_network(config: PruningConfig, folder: RunFolder, listener: Listener) -> Network:
    """Load and analyse the network that a configuration names; see to the run's threads.

    Raises:
        DeviceError: the device is not here, or no package for the workers that are asked for.
    """
    if isinstance(config, WorkersConfig):  # they start late, after minutes of measuring the dense network
        runner_spec(config.workers or "0").check()
    pin_threads(config.threads_here, folder, listener)
    return open_network(
        config,
        criterion=config.criterion,
        round_to=config.round_to,
        min_keep=config.min_keep,
        stock_yaml=isinstance(config, BudgetedConfig) and config.stock_yaml,
        listener=listener,
    )


def make_evaluator(
    network: Network,
    config: PruningConfig,
    folder: RunFolder,
    listener: Listener,
    *,
    runner: Runner,
    kind: str = "evaluation",
    pruner: Pruner | None = None,
    like: Evaluator | None = None,
) -> Evaluator:
    """Return what scores candidates on training images.

    Args:
        network: the dense network.
        config: on how many images, and how.
        folder: has the journal.
        listener: hears warnings.
        runner: computes the candidates.
        kind: the journal's name for their evaluations.
        pruner: makes them; the network's own if None.
        like: an evaluator that holds these images already.
    """
    evaluator = Evaluator(
        network.adapter,
        pruner or network.pruner,
        images=config.images,
        batch=config.batch,
        seed=config.seed,
        journal=folder.journal,
        kind=kind,
        notify=listener.warn,
        compensate=config.compensate,
        bf16=config.bf16,
        reconstruct=isinstance(config, ReconstructingConfig) and config.reconstruct,
        criterion=config.criterion,
        runner=runner,
        like=like,
    )
    if like is None:  # the images were read now
        warn_of_skipped(network.adapter, listener)
    return evaluator


def runner_of(config: PruningConfig, network: Network, folder: RunFolder, listener: Listener) -> Runner:
    """Return what computes a run's candidates; its processes end when the folder is closed."""
    workers = config.workers if isinstance(config, WorkersConfig) else None
    device = str(network.adapter.device)
    return folder.enter(open_runner(RunnerOptions(workers or "0", config.threads_here or 1, device, listener.note)))


class PruningRun:
    """A run that prunes one network to budgets; what a stage found is in the journal, so that a resume goes through it.

    Attributes:
        config: its options, defaults filled in.
        folder: where it leaves its results.
        listener: hears the progress.
        network: the dense network.
        static: costs in closed form, by metric.
        estimator: measures and predicts latency on the run's own runtime.
        estimators: that one as ``latency``, and one for each other latency or energy that the budget names.
    """

    def __init__(self, config: BudgetedConfig, folder: RunFolder, listener: Listener) -> None:
        self.config, self.folder, self.listener = config, folder, listener
        listener.stage(stages.OPEN)
        self.network = dense_network(config, folder, listener)
        if config.distill:
            adapter = self.network.adapter
            check_teacher(adapter.module, adapter.module, adapter.example(1))
        self.static = self.network.static_costs
        named = {limit.metric for budget in config.levels for limit in budget}
        self.estimators = {
            metric: LatencyEstimator(self.network, config, folder, listener, metric=metric)
            for metric in ["latency", *sorted(filter(is_measured, named - {"latency"}))]
        }
        self.estimator = self.estimators["latency"]
        self._runner: Runner | None = None
        self._latest: Evaluator | None = None

    @property
    def dense_allocation(self) -> Allocation:
        """The allocation that keeps everything."""
        return self.network.space.allocation(self.network.space.dense)

    def dense(self, *, validate: bool = True) -> Stage:
        """Measure the dense network; its accuracy if that is wanted."""
        if validate and self.folder.journal.lookup("validation", "dense") is None:
            self.listener.stage(stages.DENSE)
        return self.stage("dense", self.network.adapter.module, self.dense_allocation, validate=validate)

    def stage(
        self,
        name: str,
        module: nn.Module,
        allocation: Allocation,
        file: Path | None = None,
        limits: Mapping[str, float] | None = None,
        *,
        validate: bool = True,
    ) -> Stage:
        """Measure a network: accuracy on the validation split, costs, size of its checkpoint, latency.

        Args:
            name: of the stage.
            module: the network.
            allocation: its kept channels per unit.
            file: its checkpoint, if there is one.
            limits: what each metric may be at most; a latency beyond its limit is measured more often.
            validate: whether the accuracy is measured.
        """
        metrics = self.folder.validated(name, module, self.network.adapter) if validate else None
        latencies = {
            metric: estimator.stage(name, module, allocation, (limits or {}).get(metric))
            for metric, estimator in self.estimators.items()
        }
        return Stage(metrics, self.network.costs(allocation, module, file), latencies)

    def limits(self, budget: Budget, dense: Stage) -> Mapping[str, float]:
        """Return what each metric may be at most, in its unit."""
        return {limit.metric: limit.resolve(dense.cost(limit.metric)) for limit in budget}

    def binding_limits(self, budget: Budget, dense: Stage) -> Mapping[str, float]:
        """Return what each metric may be at most, as ``limits`` does, of a budget that there is something to do for.

        Raises:
            ConfigError: the dense network holds the budget already.
        """
        limits = self.limits(budget, dense)
        if all(dense.cost(metric) <= most for metric, most in limits.items()):
            raise ConfigError(f"The dense network already holds {budget}; compare with a tighter budget")
        return limits

    def constrain(
        self, budget: Budget, limits: Mapping[str, float], latency_constraints: LatencyConstraints
    ) -> Constraint:
        """Return the limits of a budget as a constraint on allocations; latency by its predictor, fitted first.

        Raises:
            BudgetUnreachableError: even the narrowest network exceeds a limit.
            DeviceError: it does so by figures that were measured under load.
        """
        if latency_constraints:
            self.listener.stage(stages.PREDICTOR)
        cost_limits = [
            CostLimit(self.static[metric], most) for metric, most in limits.items() if not is_measured(metric)
        ]
        cost_limits += latency_constraints.cost_limits()
        requested = {limit.metric: limit.requested for limit in budget}
        cost_limits = [replace(cost_limit, requested=requested[cost_limit.cost.metric]) for cost_limit in cost_limits]
        with latency_constraints.judged():
            try:
                return Constraint(self.network.space, cost_limits)
            except BudgetUnreachableError as error:
                if not latency_constraints:
                    raise
                raise BudgetUnreachableError(
                    f"{error}. Measured, that narrowest network takes {latency_constraints.reachable()}."
                ) from error

    def prediction_errors(self) -> dict[str, Any] | None:
        """Return the error of the latency predictor, or by metric if there are several; None if there is none."""
        errors = {metric: estimator.prediction_error() for metric, estimator in self.estimators.items()}
        found = {metric: error for metric, error in errors.items() if error is not None}
        return found.get("latency") if set(found) <= {"latency"} else found

    def evaluator(self, kind: str = "evaluation", pruner: Pruner | None = None) -> Evaluator:
        """Return what scores the candidates of a pruner, by default the network's own, on the run's images.

        All evaluators of a run share the images, and what one of them warned of the others do not.
        """
        self._latest = make_evaluator(
            self.network,
            self.config,
            self.folder,
            self.listener,
            runner=self.runner,
            kind=kind,
            pruner=pruner,
            like=self._latest,
        )
        return self._latest

    @property
    def runner(self) -> Runner:
        """What computes the run's candidates: this process or workers, which start when they are needed."""
        if self._runner is None:
            self._runner = runner_of(self.config, self.network, self.folder, self.listener)
        return self._runner

    def usage(self) -> dict[str, Any]:
        """Return what workers were used for, as a result's figures."""
        return usage_figures(self._runner)
