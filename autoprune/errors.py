"""Every error that autoprune raises on purpose, under one root.

A message is one clear sentence: the rule, the value that broke it, the way out. The command
line prints it without a traceback and leaves with the class's ``exit_code``.
"""

from __future__ import annotations


class AutopruneError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 2


class ConfigError(AutopruneError):
    """An option or a configuration file breaks a rule."""


class BudgetError(AutopruneError):
    """A budget is malformed or contradicts itself."""


class BudgetUnreachableError(BudgetError):
    """No allocation within the bounds holds the budget; the message names the reachable minimum."""

    exit_code = 3


class ModelError(AutopruneError):
    """A model cannot be loaded, analysed, pruned or saved."""


class DataError(AutopruneError):
    """A data set is missing, empty, or does not fit the model."""


class DeviceError(AutopruneError):
    """A device or runtime is unknown, missing, or out of memory."""


class PolicyError(AutopruneError):
    """A policy file is malformed or does not fit the model it is applied to."""


class RunError(AutopruneError):
    """A run folder exists already, is not a run, or does not match what is resumed."""


class TrainingError(AutopruneError):
    """Training failed, e.g. with a loss that is not a number."""


class ExportError(AutopruneError):
    """An exported network does not predict what the network predicts that it was made of."""

    exit_code = 3


class AutopruneWarning(UserWarning):
    """Root of all warnings: one sentence that a user should read, though nothing failed."""
