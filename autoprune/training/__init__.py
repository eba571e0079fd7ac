"""Training of pruned networks: the trainer that keeps them, and fine-tuning."""

from autoprune.training.trainer import PrunedTrainer

__all__ = ["PrunedTrainer"]
