"""Agents of stable-baselines3."""
