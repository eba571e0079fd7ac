"""The stages that commands announce, each with a guess of its work, from which the time left of a run is estimated."""

from __future__ import annotations

from autoprune.config import (
    BudgetedConfig,
    CompareConfig,
    MaskConfig,
    NetAdaptConfig,
    QuantizeConfig,
    SearchConfig,
    SensitivityConfig,
    SlimConfig,
    SparsifyConfig,
    TrainConfig,
)
from autoprune.metrics import is_measured

OPEN = "Open the network"
DENSE = "Measure the dense network"
PREDICTOR = "Fit the latency predictor"
PRIOR = "Find a prior"
SEARCH = "Search"
FINALISTS = "Compare finalists"
PRUNED = "Measure the pruned network"
FINETUNE = "Fine-tune"
RESULT = "Measure the result"
STEPS = "Prune step by step"
WINNERS = "Fine-tune the winners"
REFERENCES = "Train the references"
SPARSITY = "Train sparse"
TRAIN = "Train the dense network"
SOFTEN = "Soften"
PROBE = "Probe every unit"
LAYERS = "Measure the layers"
PRUNE = "Prune"
EXPORT = "Export, compare and measure"
QAT = "Fine-tune for int8"
IN_FLOAT = "Choose what stays in float"
LATENCY = "Measure the latency"
CRITERIA = "Try every criterion"

_MEASURING, _EPOCH, _FITTING = 600.0, 1500.0, 2400.0
"""Images that a measurement of one network, an epoch and the fit of a latency predictor take as long as, roughly."""


def of_search(config: SearchConfig) -> dict[str, float]:
    """Return the stages of a search whose defaults are filled in, as `Listener.stages` takes them."""
    scoring = float((config.episodes or 0) * config.images)
    return {
        **_beginning(config),
        **({PRIOR: scoring} if config.strategy.spec.uses_prior else {}),
        SEARCH: scoring,
        FINALISTS: (config.finalists or 1) * _MEASURING,
        **_ending(config.finetune_epochs or 0),
    }


def of_netadapt(config: NetAdaptConfig, *, labels: list[str]) -> dict[str, float]:
    """Return the stages of a step-by-step pruning; each level of the budget has a label, empty if there is one."""
    ending = {f"{label}{name}": work for label in labels for name, work in _ending(config.finetune_epochs or 0).items()}
    return {**_beginning(config), STEPS: 100.0 * config.images, **ending}


def of_slim(config: SlimConfig) -> dict[str, float]:
    """Return the stages of a training to sparsity with a search behind it, defaults filled in."""
    training = {TRAIN: config.train_epochs * _EPOCH} if config.architecture is not None else {}
    return {**training, OPEN: _MEASURING, SPARSITY: config.sparsity_epochs * _EPOCH, **of_search(config)}


def of_profile() -> dict[str, float]:
    """Return the stages of a profile."""
    return {OPEN: _MEASURING, LAYERS: _FITTING}


def of_sensitivity(config: SensitivityConfig) -> dict[str, float]:
    """Return the stages of a sensitivity analysis."""
    return {OPEN: _MEASURING, PROBE: 50.0 * len(config.keep_ratios) * config.images}  # of some fifty units


def of_training(config: TrainConfig) -> dict[str, float]:
    """Return the stages of a training by a policy."""
    softening = {SOFTEN: config.softening_epochs * _EPOCH} if config.soften else {}
    return {
        OPEN: _MEASURING,
        PRUNE: _MEASURING,
        PRUNED: 2 * _MEASURING,
        **softening,
        FINETUNE: config.tuning_epochs * _EPOCH,
        RESULT: _MEASURING,
    }


def of_compare(config: CompareConfig) -> dict[str, float]:
    """Return the stages of a comparison."""
    searches, epochs = len(config.entries) * config.seeds, config.finetune_epochs or 0
    return {
        **_beginning(config),
        SEARCH: float(searches * config.evaluations * config.images),
        WINNERS: max(searches, config.correlated) * (_MEASURING + epochs * _EPOCH),
        **({REFERENCES: 4 * (_MEASURING + epochs * _EPOCH)} if config.references else {}),
    }


def of_criteria(config: CompareConfig) -> dict[str, float]:
    """Return the stages of a comparison of criteria."""
    training = (config.finetune_epochs or 0) * _EPOCH
    return {**_beginning(config), CRITERIA: len(config.compared_criteria) * (2 * _MEASURING + training)}


def of_applying() -> dict[str, float]:
    """Return the stages of a pruning by a policy."""
    return {OPEN: _MEASURING, PRUNE: _MEASURING, PRUNED: 2 * _MEASURING}


def of_exporting() -> dict[str, float]:
    """Return the stages of an export."""
    return {OPEN: _MEASURING, EXPORT: 3 * _MEASURING}


def of_quantizing(config: QuantizeConfig) -> dict[str, float]:
    """Return the stages of a quantisation; which groups stay in float may take a measurement per group."""
    networks = 1 + (config.dense is not None)
    tuning = {QAT: config.qat_epochs * _EPOCH} if config.qat_epochs else {}
    return {OPEN: _MEASURING, **tuning, IN_FLOAT: 4 * networks * _MEASURING, RESULT: 2 * networks * _MEASURING}


def of_masking(config: MaskConfig) -> dict[str, float]:
    """Return the stages of a masking."""
    tuning = {FINETUNE: config.epochs * _EPOCH}
    return {OPEN: _MEASURING, **tuning, LATENCY: _MEASURING, RESULT: 2 * _MEASURING}


def of_sparsifying(config: SparsifyConfig) -> dict[str, float]:
    """Return the stages of a training to sparsity."""
    return {OPEN: _MEASURING, SPARSITY: config.epochs * _EPOCH, RESULT: 2 * _MEASURING}


def _beginning(config: BudgetedConfig) -> dict[str, float]:
    latency = any(is_measured(limit.metric) for level in config.levels for limit in level)
    return {OPEN: _MEASURING, DENSE: _MEASURING, **({PREDICTOR: _FITTING} if latency else {})}


def _ending(epochs: int) -> dict[str, float]:
    trained = {FINETUNE: epochs * _EPOCH, RESULT: _MEASURING} if epochs else {}
    return {PRUNED: _MEASURING, **trained}
