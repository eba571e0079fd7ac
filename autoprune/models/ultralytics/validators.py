"""Ultralytics' validators of the tasks that add something to a box."""

from __future__ import annotations

from autoprune.models import stock
from autoprune.models.detection.metrics import PatientValidator


class MasksValidator(stock.SegmentationValidator, PatientValidator):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


class KeypointsValidator(stock.PoseValidator, PatientValidator):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""


class RotatedValidator(stock.OBBValidator, PatientValidator):  # type: ignore[misc]
    """Its boxes come from the patient NMS."""
