"""Static int8 quantisation of a trained network: which of its layers stay in float, by what they cost in accuracy.

Ranges are found on one set of training images and every decision is taken on another one, so that the validation split
only tells how it went.
"""

from autoprune.quantization.choice import Choice, Step, choose
from autoprune.quantization.groups import Group, group_operations
from autoprune.quantization.network import Deployed, InFloat, Quantization, Samples

__all__ = ["Choice", "Deployed", "Group", "InFloat", "Quantization", "Samples", "Step", "choose", "group_operations"]
