"""What a teacher's predictions tell a student's: the terms of distillation.

All terms are zero if the student predicts what the teacher does. Those of classes and boxes weigh every anchor by
the teacher's confidence in it, so that the hundreds of anchors that see background do not drown the few that see an
object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten_with_path

from autoprune.training.extensions.projections import Adapters

CLASS_TEMPERATURE = 2.0
"""Divides class logits, so that what the teacher is sure of still tells what else it might be (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, section 2); small, since a sigmoid has no other classes to share
with and at a high temperature background would look like half an object."""

BOX_TEMPERATURE = 10.0
"""Divides the bins' logits (Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022)."""

CLASS_WEIGHT, BOX_WEIGHT, FEATURE_WEIGHT = 0.5, 0.25, 1.0
"""Of the terms in their sum. That of classes is Ultralytics' own for its class term, that of boxes the one of
localization distillation's authors. So weighted, what is taught begins about half as loud as what the labels say: with
half of all widths of the project's BCCD detectors the terms are 1.5, 0.6 to 0.9 and 0.4 to 0.6, the network's own 2.3
to 2.7 each."""

LEAST_NORM = 1e-3
"""Norms count as this at least, or a channel that is the same everywhere would have a gradient without bounds."""

Predictions = Mapping[str, Any]
"""What a head of Ultralytics predicts in one branch: ``boxes`` of shape (B, 4 × bins, anchors), ``scores`` of shape
(B, classes, anchors), both logits, and ``feats``, the maps that it reads, each of shape (B, C, H, W)."""


Teacher = Callable[[torch.Tensor], Any]
"""Maps images to what the teacher gives for them, without gradients."""


def branches(output: Any) -> Sequence[Predictions]:
    """Return a head's predictions by branch, whose maps carry gradients first: one, or two of an end-to-end head.

    Args:
        output: of the network; in eval mode it comes second, after the decoded boxes.
    """
    raw = output[1] if isinstance(output, tuple) else output
    return (raw["one2many"], raw["one2one"]) if "one2many" in raw else (raw,)


def class_term(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence of the student's class probabilities from the teacher's.

    Every class is a yes or no of its own, since the heads have sigmoids (Yang et al., "Bridging Cross-task Protocol
    Inconsistency for Distillation in Dense Object Detection", ICCV 2023, section 3.2). Summed over classes, averaged
    over anchors by confidence, times the squared temperature, which keeps the gradients' size (Hinton et al., 2015,
    section 2).

    Args:
        student: class logits, shape (B, classes, anchors).
        teacher: the same.
    """
    given, known = (logits.float() / CLASS_TEMPERATURE for logits in (student, teacher))
    taught = known.sigmoid()
    cross, entropy = (
        F.binary_cross_entropy_with_logits(logits, taught, reduction="none").sum(1) for logits in (given, known)
    )
    return _by_confidence(cross - entropy, teacher) * CLASS_TEMPERATURE**2


def box_term(student: Predictions, teacher: Predictions) -> torch.Tensor:
    """Return how far the student's boxes are from the teacher's, averaged over anchors by confidence.

    With bins: the divergence between the distributions of each side's distance, times the squared temperature
    (Zheng et al., CVPR 2022). Heads without bins (``reg_max`` 1) predict the distance itself; then it is the absolute
    difference in strides, Ultralytics' own loss there.

    Args:
        student: its ``boxes`` have shape (B, 4 × bins, anchors).
        teacher: the same, and its ``scores`` tell how sure it is.
    """
    given, taught = (one["boxes"].float().unflatten(1, (4, -1)) for one in (student, teacher))
    if given.shape[2] == 1:  # (B, sides, bins, anchors)
        apart = (given - taught).abs()[:, :, 0]
    else:
        logs = [(logits / BOX_TEMPERATURE).log_softmax(2) for logits in (given, taught)]
        apart = F.kl_div(logs[0], logs[1], log_target=True, reduction="none").sum(2) * BOX_TEMPERATURE**2
    return _by_confidence(apart.mean(1), teacher["scores"])


def feature_term(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return 1 − r, r the Pearson correlation of the student's maps with the teacher's; mean over channels and maps.

    It is half the squared difference of the maps when every channel is brought to zero mean and unit variance over
    images and places (Cao et al., "PKD", NeurIPS 2022, section 3). Chosen before FitNets' plain squares (Romero et
    al., 2015), which the channels with the largest values rule, and before channel-wise distributions (Shu et al., ICCV
    2021), which need a temperature that suits the maps: this lies in [0, 2] whatever the network.

    Args:
        student: maps in the teacher's widths, each of shape (B, C, H, W).
        teacher: maps of the same shapes.
    """
    apart = []
    for one, other in zip(student, teacher, strict=True):
        rows = [maps.float().transpose(0, 1).flatten(1) for maps in (one, other)]
        given, taught = (row - row.mean(1, keepdim=True) for row in rows)
        apart.append(1 - F.cosine_similarity(given, taught, dim=1, eps=LEAST_NORM).mean())
    return torch.stack(apart).mean()


def _by_confidence(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the mean of values of shape (B, anchors), each weighing the probability of the teacher's surest class.

    The weights count as one anchor at least, as in Ultralytics' own loss: images where the teacher sees nothing must
    not weigh as much as others.
    """
    confidence = scores.float().sigmoid().amax(1)
    return (values * confidence).sum() / confidence.sum().clamp(min=1)


class DetectorTerms(nn.Module):
    """The terms of distillation for heads that predict boxes and classes on a grid.

    A head with two branches is taught in both, each by the teacher's branch of its kind, and the mean counts.

    Args:
        teacher: gives what the student gives in train mode, without gradients.
        adapters: for the maps that the head reads; they are trained.
        weight: of all terms.
    """

    TERMS = ("distill_cls", "distill_box", "distill_feat")

    def __init__(self, teacher: Teacher, adapters: Adapters, *, weight: float) -> None:
        super().__init__()
        self._teacher, self.adapters, self._weight = teacher, adapters, weight

    def forward(self, output: Any, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the terms by name, for the student's output and its images."""
        pairs = list(zip(branches(output), branches(self._teacher(images)), strict=True))
        classes = torch.stack([class_term(given["scores"], taught["scores"]) for given, taught in pairs]).mean()
        boxes = torch.stack([box_term(given, taught) for given, taught in pairs]).mean()
        maps = pairs[0][1]["feats"]
        features = feature_term(self.adapters(pairs[0][0]["feats"], maps), maps)
        terms = (CLASS_WEIGHT * classes, BOX_WEIGHT * boxes, FEATURE_WEIGHT * features)
        return {name: self._weight * term for name, term in zip(self.TERMS, terms, strict=True)}


class OutputTerm(nn.Module):
    """The term of distillation for networks of any class: the student's outputs are brought to the teacher's.

    It has nothing to train, and is a module as `DetectorTerms` is. Arguments as there.
    """

    def __init__(self, teacher: Teacher, *, weight: float) -> None:
        super().__init__()
        self._teacher, self._weight = teacher, weight

    def forward(self, output: Any, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the term by its name."""
        return {"distill_out": self._weight * output_term(output, self._teacher(images))}


def same_outputs(student: Any, teacher: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the pairs of floating-point tensors in two networks' outputs that have the same place and shape."""
    given, taught = (dict(tree_flatten_with_path(output)[0]) for output in (student, teacher))
    return [
        (one, taught[place])
        for place, one in given.items()
        if isinstance(one, torch.Tensor) and one.is_floating_point()
        if isinstance(taught.get(place), torch.Tensor) and taught[place].shape == one.shape
    ]


def output_term(student: Any, teacher: Any) -> torch.Tensor:
    """Return the squared difference of outputs as a share of the teacher's variance, averaged over output tensors.

    Logits are compared before any softmax (Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, section
    2.1, equation 1). Divided by the variance it is 1 for a student that gives the teacher's mean everywhere.

    Args:
        student: tensors in tuples, lists and dicts.
        teacher: the same; tensors of other shapes are left out.
    """
    apart = []
    for one, other in same_outputs(student, teacher):
        given, taught = one.float(), other.float()
        spread = taught.var(correction=0).clamp(min=LEAST_NORM**2)
        apart.append((given - taught).square().mean() / spread)
    return torch.stack(apart).mean()
