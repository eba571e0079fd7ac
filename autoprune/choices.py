"""What a person chooses among, by the names that the command line and the files use."""

from __future__ import annotations

from enum import Enum


class StrategyName(Enum):
    """What searches: agents, and the simple strategies that they must beat."""

    PPO = "ppo"
    DDPG = "ddpg"
    TD3 = "td3"
    SAC = "sac"
    UNIFORM = "uniform"
    GLOBAL = "global"
    RANDOM = "random"
    GREEDY = "greedy"
    SENSITIVITY = "sensitivity"
    KNAPSACK = "knapsack"
    EVOLUTION = "evolution"


FROM_CURVES = {StrategyName.SENSITIVITY, StrategyName.KNAPSACK}
"""Strategies that start from sensitivity curves."""

AGENTS = {StrategyName.PPO, StrategyName.DDPG, StrategyName.TD3, StrategyName.SAC}

WARM_STARTED = {*AGENTS, StrategyName.EVOLUTION}
"""Strategies that can start from what others found."""


class Rule(Enum):
    """How the environment makes an episode hold the budget."""

    PROJECTED = "projected"
    CAPPED = "capped"


class Criterion(Enum):
    """What says which channels of a unit stay."""

    L1 = "l1"
    L2 = "l2"
    BN = "bn"


class Select(Enum):
    """What NetAdapt and the greedy search keep of a step's proposals."""

    ACCURACY = "accuracy"
    """The highest score (the paper)."""
    ACCURACY_PER_RESOURCE = "accuracy-per-resource"
    """The least score lost per cost saved (the authors' code)."""


class Runtime(Enum):
    """What runs the network where latency is measured."""

    TORCH = "torch"
    TORCH_COMPILE = "torch-compile"
    CUDAGRAPH = "cudagraph"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


class Precision(Enum):
    """Number format of weights and activations where latency is measured."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
