"""Packages that are extras: a test that runs one is skipped where it is not installed, with its name."""

from __future__ import annotations

import importlib.util

import pytest

_MODULES = {"litert": ("ai_edge_litert", "onnxruntime"), "ncnn": ("ncnn", "pnnx")}
"""Of the runtimes that are not one module of the same name."""


def need(*packages: str) -> None:
    """Skip the test that calls this where a package is absent: without its extra there is nothing to run."""
    for package in (module for name in packages for module in _MODULES.get(name, (name,))):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
