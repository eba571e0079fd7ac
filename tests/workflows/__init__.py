"""Tests of commands, of the Python API, and of what a user meets."""
