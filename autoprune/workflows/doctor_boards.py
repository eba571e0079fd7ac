"""The checks of ``autoprune doctor BOARD``: whether latency can be measured on a board over SSH."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autoprune.choices import RUNTIMES, Precision, Runtime, RuntimeSpec
from autoprune.errors import DeviceError
from autoprune.runtimes import open_backend
from autoprune.runtimes.hosts import SshHost, board_at
from autoprune.runtimes.settings import runtime_settings
from autoprune.workflows.doctor import Check, State

_SCARCE = 500 * 10**6
_STEADY = ("performance", "")


def board_checks(url: str) -> Iterator[Check]:
    """Look at a board: the connection, the machine, and what runs networks there.

    Raises:
        DeviceError: it cannot be reached.
    """
    board = board_at(url)
    there = board.description
    yield Check("connection", f"{board.round_trip():.1f} ms there and back")
    yield Check("Python", there["python"], hint=there["executable"])
    yield Check("board", there["board"] or there["machine"], hint=f"kernel {there['kernel']}")
    yield Check("CPU", f"{there['cpu'] or there['machine']}, {there['cores']} cores")
    yield from _state(board.state(), str(there["governor"]))
    free = int(there["free"])
    full = "networks of some megabytes are sent to its temporary folder" if free < _SCARCE else ""
    yield Check("disk", f"{free / 1e9:.1f} GB free", State.BROKEN if full else State.OK, full)
    holder = board.holder()
    yield Check("used by", holder or "nobody", hint="a search waits for it to end" if holder else "")
    if holder:
        return
    specs = [spec for spec in RUNTIMES if spec.on_boards and not spec.external]
    checks = [_runtime(board, spec) for spec in specs]
    yield from checks
    if not any(check.state is State.OK for check in checks):
        yield Check("runtimes", "none", State.BROKEN, f"e.g. {board.install_hint(*_packages(specs[0]))}")


def _state(state: Mapping[str, Any], governor: str) -> Iterator[Check]:
    """Look at what decides how steady times are."""
    changing = "the clock changes with the load: times are steadier with the governor performance"
    yield Check("governor", governor or "unknown", hint="" if governor in _STEADY else changing)
    speeds, heat = state["megahertz"], state["celsius"]
    yield Check("clock", f"{speeds[0]:.0f} of {speeds[1]:.0f} MHz" if speeds is not None else "unknown")
    hot = "it throttles: cool it, or power it better" if state["throttled"] else ""
    yield Check("temperature", f"{heat:.0f} °C" if heat is not None else "unknown", hint=hot)


def _runtime(board: SshHost, spec: RuntimeSpec) -> Check:
    """Start a runtime there, in every number format that it may have."""
    versions = board.fingerprint(spec.packages)
    version = next((str(versions[package]) for package in spec.packages if package in versions), "")
    works, reason = list[str](), ""
    for precision in spec.precisions["cpu"]:
        if precision is Precision.INT8 and not works:
            break
        try:
            settings = runtime_settings(
                board.name, image_size=64, runtime=Runtime(spec.name), precision=precision, threads=1
            )
            open_backend(settings)
        except DeviceError as error:
            reason = reason or str(error)
        else:
            works.append(precision.value)
    if not works:
        return Check(spec.name, version, State.MISSING, reason)
    return Check(spec.name, f"{version}: {', '.join(works)}")


def _packages(spec: RuntimeSpec) -> tuple[str, ...]:
    """Return what a board needs for a runtime."""
    return ("numpy", spec.packages[0])
