"""Packages that are extras: a test that runs one is skipped where it is not installed, with its name."""

from __future__ import annotations

import importlib.util

import pytest


def need(*packages: str) -> None:
    """Skip the test that calls this where a package is absent: without its extra there is nothing to run."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
