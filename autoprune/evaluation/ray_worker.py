"""The process that computes candidates for others, as an actor of Ray's."""

from __future__ import annotations

import io
import pickle
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from autoprune.evaluation.runners import Large, Shared

_PACKAGES = ("autoprune", "torch", "numpy", "ultralytics")


class CandidateWorker:
    """Holds the function, and so the network, the images and the covariances, and computes its answers.

    Args:
        threads: CPU threads that it computes with.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._function: Callable[[Any], Any]
        self._shared: dict[int, Shared[Any]] = {}

    def versions(self) -> dict[str, str]:
        """Return the versions of what scores depend on."""
        return versions()

    def load(self, function: bytes, shared: Mapping[int, Any]) -> None:
        """Take the function that the next items are for.

        Args:
            function: pickled; None lets go of the one before.
            shared: Ray's references to what it shares with other functions, by number; each is fetched once, and what
                is not among them is forgotten.
        """
        known = self._shared
        self._shared = {
            number: known[number] if number in known else Shared(_get(reference))
            for number, reference in shared.items()
        }
        self._function = _Unpickler(function, self._shared).load()

    def compute(self, item: Any) -> tuple[Any, float, Any]:
        """Return the function's answer, the seconds that it took, and where the large part of a `Large` one lies."""
        start = time.perf_counter()
        answer = self._function(item)
        seconds = time.perf_counter() - start
        if isinstance(answer, Large):
            return answer.summary, seconds, _put(answer.fetch())
        return answer, seconds, None


class _Unpickler(pickle.Unpickler):
    """Reads a function; what it shares is here already."""

    def __init__(self, data: bytes, shared: Mapping[int, Shared[Any]]) -> None:
        super().__init__(io.BytesIO(data))
        self._shared = shared

    def persistent_load(self, number: int) -> Shared[Any]:
        """Return a shared value by its number."""
        return self._shared[number]


def _put(value: Any) -> Any:
    """Put a value into the object store of this machine; return Ray's reference to it."""
    import ray

    return ray.put(value)


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that scores depend on, in this process."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that was never installed
            continue
    return found
