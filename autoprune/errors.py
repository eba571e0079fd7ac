"""Every error that autoprune raises on purpose, under one root.

A message is one clear sentence: the rule, the value that broke it, the way out. The command
line prints it without a traceback and leaves with the class's ``exit_code``.
"""

from __future__ import annotations


class AutopruneError(Exception):
    """Root of all errors raised on purpose.

    Example:
        >>> try:
        ...     ap.load("missing.pt")
        ... except ap.AutopruneError as error:
        ...     print(type(error).__name__, error.exit_code)
        ModelError 2
    """

    exit_code = 2


class ConfigError(AutopruneError):
    """An option or a configuration file breaks a rule.

    Example:
        >>> ap.search("best.pt", data="data.yaml", budget="flops=50%", episodes=0)
        Traceback (most recent call last):
        autoprune.errors.ConfigError: `episodes` must be a whole number of at least 1, got 0
    """


class BudgetError(AutopruneError):
    """A budget is malformed or contradicts itself.

    Example:
        >>> ap.Budget.parse(["flops=50%", "flops=1G"])
        Traceback (most recent call last):
        autoprune.errors.BudgetError: A budget limits each metric once, got flops=50% and flops=1G; ...
    """


class BudgetUnreachableError(BudgetError):
    """No allocation within the bounds holds the budget; the message names the reachable minimum.

    Example:
        >>> ap.search("best.pt", data="data.yaml", budget="flops=1%")
        Traceback (most recent call last):
        autoprune.errors.BudgetUnreachableError: The budget flops=1% is out of reach: ...
    """

    exit_code = 3


class ModelError(AutopruneError):
    """A model cannot be loaded, analysed, pruned or saved.

    Example:
        >>> ap.load("missing.pt")
        Traceback (most recent call last):
        autoprune.errors.ModelError: ...
    """


class DataError(AutopruneError):
    """A data set is missing, empty, or does not fit the model.

    Example:
        >>> ap.load("best.pt", data="missing.yaml")
        Traceback (most recent call last):
        autoprune.errors.DataError: ...
    """


class DeviceError(AutopruneError):
    """A device or runtime is unknown, missing, or out of memory.

    Example:
        >>> ap.load("best.pt", device="cuda:99")
        Traceback (most recent call last):
        autoprune.errors.DeviceError: ...
    """


class PolicyError(AutopruneError):
    """A policy file is malformed or does not fit the model it is applied to.

    Example:
        >>> ap.load("best.pt").policy({"model.99": 8})
        Traceback (most recent call last):
        autoprune.errors.PolicyError: The network has no unit model.99; its units are ...
    """


class RunError(AutopruneError):
    """A run folder exists already, is not a run, or does not match what is resumed.

    Example:
        >>> ap.search(resume="missing")
        Traceback (most recent call last):
        autoprune.errors.RunError: ...
    """


class TrainingError(AutopruneError):
    """Training failed, e.g. with a loss that is not a number.

    Example:
        >>> ap.finetune(ap.load("best.pt"), out="runs/untrained")
        Traceback (most recent call last):
        autoprune.errors.TrainingError: ...
    """


class ExportError(AutopruneError):
    """An exported network does not predict what the network predicts that it was made of.

    Example:
        >>> try:
        ...     run = ap.export("best.pt", data="data.yaml")
        ... except ap.ExportError as error:
        ...     print(error)
    """

    exit_code = 3


_OUT_OF_MEMORY = (
    "memoryerror",
    "outofmemory",
    "out of memory",
    "not enough memory",
    "allocate memory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "allocation_failed",
)
"""Names and texts of errors of Python, C++, torch, CUDA, cuBLAS, cuDNN and runtimes, in lower case."""


def is_out_of_memory(error: BaseException | str) -> bool:
    """Return whether an error, or what a process said at its end, means that memory ran out.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("no kernel"))
        (True, False)
    """
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return any(sign in text.lower() for sign in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    r"""Return the first line of what an error says; the name of its class if it says nothing.

    Example:
        >>> first_line(ValueError("no such layer\n  at 0x7f")), first_line(AssertionError())
        ('no such layer', 'AssertionError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class AutopruneWarning(UserWarning):
    """Root of all warnings: one sentence that a user should read, though nothing failed.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", ap.AutopruneWarning)
        ...     run = ap.apply("best.pt", policy="policy.json")
    """
