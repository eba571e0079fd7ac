"""Serves one engine to the process that started it; a script of its own, run as ``python worker.py ENGINE OPTIONS``.

It holds one runtime and nothing else: two runtimes alive in one process disturb each other, and so does torch. Requests
come as lines of JSON on the standard input, ``{"call": name, "arguments": {...}}``, and are answered by one line each,
``{"value": ...}`` or ``{"error": {"kind": ..., "text": ...}}``; the first answer, unasked, says whether the engine
started. All calls are methods of the engine but ``rounds`` and ``joules``. The process ends when its input ends, which
is when the parent does. It runs on boards, too: Python 3.8 must be able to read it, and the engines.
"""

from __future__ import annotations

import os
import sys

if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
    del sys.path[0]  # the folder of this script: none of its files may stand in for an installed package

import gc
import importlib.util
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
    for line in sys.stdin:
        request = json.loads(line)
        ours = _OURS.get(request["call"])
        act = partial(ours, started) if ours else getattr(started, request["call"])
        _answer(answers, partial(act, **request["arguments"]))


def _rounds(engine: Any, numbers: list[int], rounds: int) -> list[list[float]]:
    """Run networks once per round, one after another, and return every time: milliseconds, shape (rounds, networks)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return [[engine.run(number) for number in numbers] for _ in range(rounds)]
    finally:
        if enabled:
            gc.enable()


def _joules(engine: Any, number: int, runs: int, counter: str) -> float:
    """Run a network a number of times, and return the joules that were used meanwhile, by the counter of a file."""

    def act() -> None:
        for _ in range(runs):
            engine.run(number)

    return float(_load(counter).find_counter().joules(act))


_OURS: dict[str, Callable[..., Any]] = {"rounds": _rounds, "joules": _joules}
"""The calls that are no methods of the engine."""


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
