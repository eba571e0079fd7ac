"""Pruning criteria: one file per family, chosen by name here."""

from autoprune.importance._base import Importance, Scores, ranking
from autoprune.importance.batchnorm import BatchNormImportance
from autoprune.importance.magnitude import MagnitudeImportance

CRITERIA = {"l1": lambda: MagnitudeImportance(1), "l2": lambda: MagnitudeImportance(2), "bn": BatchNormImportance}
"""Every criterion by the name that the command line and the policy use."""

__all__ = ["CRITERIA", "BatchNormImportance", "Importance", "MagnitudeImportance", "Scores", "ranking"]
