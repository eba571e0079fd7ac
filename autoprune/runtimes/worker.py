"""Serves one engine to the process that started it; a script of its own, run as ``python worker.py ENGINE OPTIONS``.

It holds one runtime and nothing else: two runtimes alive in one process disturb each other, and so does torch. Requests
come as lines of JSON on the standard input, ``{"call": name, "arguments": {...}}``, and are answered by one line each,
``{"value": ...}`` or ``{"error": {"kind": ..., "text": ...}}``; the first answer, unasked, says whether the engine
started. Calls are methods of `Served`, else of the engine. The process ends when its input ends, which is when the
parent does. It runs on boards, too: Python 3.8 must be able to read it, and the engines.
"""

from __future__ import annotations

import os
import sys

if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
    del sys.path[0]  # the folder of this script: none of its files may stand in for an installed package

import gc
import importlib.util
import itertools
import json
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

CALLS_HOME = ("openvino_telemetry",)
"""Telemetry packages of runtimes, blocked from being imported; the runtimes work without them."""


def main(engine: str, options: str) -> None:
    """Start the engine in a file with JSON options, and serve it until the input ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the parent gets the signal too, and decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints is no answer
    sys.modules.update(dict.fromkeys(CALLS_HOME))  # type: ignore[arg-type]  # None: cannot be imported
    started = _answer(answers, lambda: _load(engine).Engine(**json.loads(options)))
    if started is None:
        return
    served = Served(started)
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, partial(getattr(served, request["call"]), **request["arguments"]))


class Served:
    """An engine and the networks that it has loaded, by number."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._networks: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def capabilities(self) -> list[str]:
        """Return what the engine says that it can do here, if it says anything."""
        return self._engine.capabilities() if hasattr(self._engine, "capabilities") else []

    def load(self, path: str, shape: list[int] | None = None) -> int:
        """Load a network and return its number."""
        network = self._engine.load(path, shape)
        number = next(self._numbers)
        self._networks[number] = network
        return number

    def run(self, number: int) -> float:
        """Run a network once, and return the milliseconds that it took."""
        return float(self._engine.run(self._networks[number]))

    def rounds(self, numbers: list[int], rounds: int) -> list[list[float]]:
        """Run networks once per round, one after another, and return every time: shape (rounds, networks)."""
        run, networks = self._engine.run, [self._networks[number] for number in numbers]
        enabled = gc.isenabled()
        gc.disable()
        try:
            return [[run(network) for network in networks] for _ in range(rounds)]
        finally:
            if enabled:
                gc.enable()

    def joules(self, number: int, runs: int, counter: str) -> float:
        """Run a network a number of times, and return the joules that were used meanwhile, by the counter of a file."""

        def act() -> None:
            for _ in range(runs):
                self.run(number)

        return float(_load(counter).find_counter().joules(act))

    def outputs(self, number: int, image: str, to: str) -> int:
        """Run on the input in a ``.npy`` file, write the outputs to ``.npz`` as arr_0, …, and return how many."""
        import numpy  # with the engine's packages, not before them

        found = self._engine.outputs(self._networks[number], numpy.load(image))
        numpy.savez(to, *found)
        return len(found)

    def drop(self, number: int) -> None:
        """Free a network, and what it holds outside of Python."""
        network = self._networks.pop(number)
        if hasattr(network, "free"):
            network.free()


def _load(path: str) -> Any:
    """Return the module of a file."""
    spec = importlib.util.spec_from_file_location("loaded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _answer(answers: TextIO, act: Callable[[], Any]) -> Any:
    """Call ``act``, send its result or its error, and return the result, or None."""
    result = None
    try:
        result = act()
        answer = {"value": result if _plain(result) else None}
    except Exception as error:  # the parent reports whatever a runtime raises
        answer = {"error": {"kind": type(error).__name__, "text": str(error)}}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    return result


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, dict))


if __name__ == "__main__":
    main(*sys.argv[1:])
