"""Collect statistics of activations: channel covariances, sampled positions, batch norm statistics."""
