"""Pruning criteria: one file each, chosen by name here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autoprune.choices import check_criterion, exponent_of
from autoprune.errors import ConfigError
from autoprune.importance._base import Evidence, Importance, Member, Scores, ranking
from autoprune.importance.apoz import ApozImportance
from autoprune.importance.batchnorm import BatchNormImportance
from autoprune.importance.control import RandomImportance
from autoprune.importance.covariance import CovarianceImportance
from autoprune.importance.fisher import FisherImportance
from autoprune.importance.geometric_median import GeometricMedianImportance
from autoprune.importance.hutchinson import HutchinsonImportance
from autoprune.importance.lamp import LampImportance
from autoprune.importance.magnitude import MagnitudeImportance
from autoprune.importance.regression import RegressionImportance
from autoprune.importance.taylor import TaylorImportance

WEIGHT_CRITERIA: Mapping[str, Callable[[], Importance]] = {
    "bn": BatchNormImportance,
    "fpgm": GeometricMedianImportance,
    "lamp": LampImportance,
    "random": RandomImportance,
}
"""Criteria that read weights alone, by the name that the command line and the policy use; beside the norms l<p>."""

IMAGE_CRITERIA: Mapping[str, Callable[[Evidence], Importance]] = {
    "covariance": CovarianceImportance,
    "regression": RegressionImportance,
    "taylor": TaylorImportance,
    "fisher": FisherImportance,
    "hutchinson": HutchinsonImportance,
    "apoz": ApozImportance,
}
"""Criteria that look at training images."""


def make_criterion(name: str, evidence: Callable[[], Evidence] | None = None) -> Importance:
    """Return the criterion of a name.

    Args:
        name: one that ``choices.check_criterion`` accepts.
        evidence: returns training images; only called for a criterion that looks at them.

    Raises:
        ConfigError: there is no such criterion, or it needs images and there are none.
    """
    check_criterion(name)
    exponent = exponent_of(name)
    if exponent is not None:
        return MagnitudeImportance(exponent)
    if name in WEIGHT_CRITERIA:
        return WEIGHT_CRITERIA[name]()
    if evidence is None:
        raise ConfigError(
            f"The criterion {name} looks at training images, and there are none; give --data, or choose one that reads "
            "weights alone, such as l1"
        )
    return IMAGE_CRITERIA[name](evidence())


__all__ = [
    "IMAGE_CRITERIA",
    "WEIGHT_CRITERIA",
    "Evidence",
    "Importance",
    "Member",
    "Scores",
    "make_criterion",
    "ranking",
]
