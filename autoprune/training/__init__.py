"""Training of pruned networks: the trainer that keeps them, and fine-tuning."""
