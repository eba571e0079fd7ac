"""Register every pruning criterion: a new one is a file and a record here. Nothing heavy is imported before use."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoprune.errors import ConfigError

if TYPE_CHECKING:
    from autoprune.criteria._base import CalibrationData, Importance

LARGEST_EXPONENT = 16
"""Of a norm; beyond it, the powers of small weights are zero."""


@dataclass(frozen=True)
class CriterionSpec:
    """What is known of a criterion before it is made.

    Attributes:
        name: as options and policies name it.
        factory: ``module:name`` of its class; of `CalibrationData` if it needs images, else of nothing.
        needs_images: whether it looks at training images.
        folds: whether its least channels give a constant, which is folded into what reads them.
        source: where it comes from.

    Example:
        >>> [spec.name for spec in CRITERIA if spec.needs_images]
        ['covariance', 'regression', 'taylor', 'fisher', 'hutchinson', 'apoz']
    """

    name: str
    factory: str
    needs_images: bool = False
    folds: bool = False
    source: str = ""


_HERE = "autoprune.criteria"

CRITERIA = (
    CriterionSpec(
        "bn", f"{_HERE}.batchnorm:BatchNormImportance", folds=True, source="Liu et al., Network Slimming, ICCV 2017"
    ),
    CriterionSpec(
        "fpgm",
        f"{_HERE}.geometric_median:GeometricMedianImportance",
        source="He et al., Filter Pruning via Geometric Median, CVPR 2019",
    ),
    CriterionSpec(
        "lamp",
        f"{_HERE}.lamp:LampImportance",
        source="Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021",
    ),
    CriterionSpec(
        "random", f"{_HERE}.control:RandomImportance", source="Mittal et al., Recovering from Random Pruning, WACV 2018"
    ),
    CriterionSpec(
        "covariance",
        f"{_HERE}.covariance:CovarianceImportance",
        needs_images=True,
        source="Luo et al., ThiNet, ICCV 2017; Kim et al., Neuron Merging, NeurIPS 2020; Theis et al., Faster Gaze "
        "Prediction with Dense Networks and Fisher Pruning, arXiv:1801.05787, 2018",
    ),
    CriterionSpec(
        "regression",
        f"{_HERE}.regression:RegressionImportance",
        needs_images=True,
        source="Luo et al., ThiNet, ICCV 2017; He et al., Channel Pruning for Accelerating Very Deep Neural Networks, "
        "ICCV 2017",
    ),
    CriterionSpec(
        "taylor",
        f"{_HERE}.taylor:TaylorImportance",
        needs_images=True,
        source="Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019",
    ),
    CriterionSpec(
        "fisher",
        f"{_HERE}.fisher:FisherImportance",
        needs_images=True,
        source="LeCun et al., Optimal Brain Damage, NeurIPS 1989; Theis et al., Faster Gaze Prediction with Dense "
        "Networks and Fisher Pruning, arXiv:1801.05787, 2018",
    ),
    CriterionSpec(
        "hutchinson",
        f"{_HERE}.hutchinson:HutchinsonImportance",
        needs_images=True,
        source="Yu et al., Hessian-Aware Pruning, WACV 2022",
    ),
    CriterionSpec(
        "apoz", f"{_HERE}.apoz:ApozImportance", needs_images=True, source="Hu et al., Network Trimming, 2016"
    ),
)
"""All but the norms, ``l<p>`` for any p > 0, in the order in which messages list them."""

_NORMS = ("l1", "l2")


def spec_of(name: str) -> CriterionSpec:
    """Return the record of a criterion.

    Raises:
        ConfigError: there is none of that name; the message says which there are.

    Example:
        >>> spec_of("bn").folds, spec_of("l1").folds
        (True, False)
    """
    exponent = exponent_of(name)
    if exponent is not None and not 0 < exponent <= LARGEST_EXPONENT:
        raise ConfigError(
            f"The criterion l<p> is the norm with the exponent p, which must be above 0 and at most "
            f"{LARGEST_EXPONENT}, got {name!r}"
        )
    if exponent is not None:
        return CriterionSpec(
            name,
            f"{_HERE}.magnitude:MagnitudeImportance",
            source="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017",
        )
    found = next((spec for spec in CRITERIA if spec.name == name), None)
    if found is None:
        known = sorted(CRITERIA, key=lambda spec: spec.needs_images)
        names = ", ".join((*_NORMS, *(spec.name for spec in known)))
        raise ConfigError(f"A criterion is one of {names}, or l<p> for the norm of any p > 0, got {name!r}")
    return found


def exponent_of(name: str) -> float | None:
    """Return p if a criterion is the norm ``l<p>``, or None.

    Example:
        >>> exponent_of("l1.5"), exponent_of("lamp")
        (1.5, None)
    """
    found = re.fullmatch(r"l(-?[0-9]+(?:\.[0-9]+)?)", name)
    return float(found[1]) if found else None


def make_criterion(name: str, evidence: Callable[[], CalibrationData] | None = None) -> Importance:
    """Return the criterion of a name.

    Args:
        name: of the criterion.
        evidence: returns training images; only called for a criterion that looks at them.

    Raises:
        ConfigError: there is no such criterion, or it needs images and there are none.

    Example:
        >>> from torch import nn, zeros
        >>> from autoprune.structure.validation import analyse
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
        >>> network[0].weight.data[2], network[2].weight.data[:, 2] = 0, 0  # written by one layer, read by the other
        >>> graph = analyse(network, zeros(1, 3, 32, 32))
        >>> order = dict(zip((group.name for group in graph.groups), make_criterion("l1").order(network, graph)))
        >>> int(order["0"][-1])
        2
    """
    spec = spec_of(name)
    if spec.needs_images and evidence is None:
        raise ConfigError(f"The criterion {name} looks at training images, and there are none; give `data`")
    exponent, kind = exponent_of(name), pkgutil.resolve_name(spec.factory)
    arguments = (exponent,) if exponent is not None else (evidence(),) if spec.needs_images and evidence else ()
    criterion: Importance = kind(*arguments)
    return criterion
