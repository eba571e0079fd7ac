"""Pruning criteria: one file each, chosen by name here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autoprune.choices import check_criterion, exponent_of
from autoprune.criteria._base import Evidence, Importance, Member, Scores, ranking
from autoprune.criteria.apoz import ApozImportance
from autoprune.criteria.batchnorm import BatchNormImportance
from autoprune.criteria.control import RandomImportance
from autoprune.criteria.covariance import CovarianceImportance
from autoprune.criteria.fisher import FisherImportance
from autoprune.criteria.geometric_median import GeometricMedianImportance
from autoprune.criteria.hutchinson import HutchinsonImportance
from autoprune.criteria.lamp import LampImportance
from autoprune.criteria.magnitude import MagnitudeImportance
from autoprune.criteria.regression import RegressionImportance
from autoprune.criteria.taylor import TaylorImportance
from autoprune.errors import ConfigError

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
            f"The criterion {name} looks at training images, and there are none; give `data`, or choose one that reads "
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
