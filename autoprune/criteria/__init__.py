"""Pruning criteria: which channels of a unit stay. `registry` has one record for each."""
