"""Static int8 quantisation of a trained network, with the most sensitive layers left in float.

Activation ranges are calibrated on one set of training images and layers are chosen on another, so that the validation
split stays an independent test.
"""

from autoprune.quantization.choice import Choice, choose_precision
from autoprune.quantization.network import (
    DeployedResult,
    InFloat,
    OperationGroup,
    Quantization,
    QuantizationImages,
    group_operations,
)

__all__ = [
    "Choice",
    "DeployedResult",
    "InFloat",
    "OperationGroup",
    "Quantization",
    "QuantizationImages",
    "choose_precision",
    "group_operations",
]
