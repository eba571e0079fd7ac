"""``autoprune doctor``: what this installation and this machine have, without the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from autoprune.config import DoctorConfig
from autoprune.errors import first_line
from autoprune.listener import Listener
from autoprune.workflows.call import Caller, Finished

_WIDEST = 140


class State(Enum):
    """What was found of a thing.

    Example:
        >>> [state.value for state in State]
        ['ok', 'missing', 'broken']
    """

    OK = "ok"
    MISSING = "missing"
    """Not here, and not needed: an optional runtime, a GPU."""
    BROKEN = "broken"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        found: a version, a size, a path.
        state: whether it is as it should be.
        hint: what to do, or what follows from it.
    """

    name: str
    found: str
    state: State = State.OK
    hint: str = ""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What ``doctor`` found; prints as a table.

    Attributes:
        sections: the checks by what they are about.

    Example:
        >>> found = Diagnosis({"Packages": [Check("torch", "2.9.0"), Check("cma", "", State.MISSING)]})
        >>> found.healthy
        True
    """

    sections: Mapping[str, list[Check]]

    @property
    def broken(self) -> list[Check]:
        """The checks that failed."""
        return [check for checks in self.sections.values() for check in checks if check.state is State.BROKEN]

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken; what is optional may be missing."""
        return not self.broken

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "healthy": self.healthy,
            "sections": {
                title: [{**asdict(check), "state": check.state.value} for check in checks]
                for title, checks in self.sections.items()
            },
        }

    def rich(self) -> Table:
        """Return it as a table of rich."""
        table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
        for name, least in (("name", 12), ("found", 20), ("state", 7), ("hint", 20)):
            table.add_column(name, overflow="fold", min_width=least)
        for title, checks in self.sections.items():
            table.add_section()
            table.add_row(f"[bold]{title}[/]")
            for check in checks:
                state = "" if check.state is State.OK else check.state.value
                table.add_row(f"  {_plain(check.name)}", _plain(check.found), state, _plain(check.hint))
        return table

    def __str__(self) -> str:
        text = StringIO()
        width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)
        Console(file=text, width=width, highlight=False).print(self.rich())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __repr__(self) -> str:
        return str(self)


def doctor(board: str | Sequence[str] = ()) -> Diagnosis:
    """Look at this installation and this machine, without the network, or at boards over SSH; takes some seconds.

    Args:
        board: the address of a board, ssh://[USER@]HOST[:PORT], or several: they are looked at in place of this
            machine.

    Returns:
        Versions of the packages, the processor, memory, load, devices, runtimes with the number formats that they
        compute in, caches, and the folders of Ultralytics' settings. Of a board: how it is reached, its Python, speed
            and heat, and its runtimes. What cannot be looked at is broken, not an error.

    Example:
        >>> found = ap.doctor()
        >>> found.healthy, [(check.name, check.found) for check in found.broken]
        (True, [])
    """
    boards = DoctorConfig(board=(board,) if isinstance(board, str) else tuple(board)).board
    if boards:
        from autoprune.workflows.doctor_boards import board_checks

        return Diagnosis({url: _looked(partial(board_checks, url)) for url in boards})

    from autoprune.workflows import doctor_checks as checks

    looks: Mapping[str, Callable[[], Iterable[Check]]] = {
        "Installation": checks.installation,
        "Packages": checks.packages,
        "Machine": checks.machine,
        "Devices": checks.devices,
        "Runtimes": checks.runtimes,
        "Optional": checks.extras,
        "Cache": checks.caches,
        "Ultralytics": checks.ultralytics,
    }
    return Diagnosis({title: _looked(look) for title, look in looks.items()})


def run(config: DoctorConfig, listener: Listener, caller: Caller) -> Finished:
    """Tell what was found; broken things make the exit code 1."""
    found = doctor(config.board)
    listener.note(json.dumps(found.to_json(), indent=1) if config.json else str(found))
    return Finished(Path(), broken=not found.healthy)


def _looked(look: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return the checks of a section; an error of any kind is what the doctor looks for."""
    found: list[Check] = []
    try:
        for check in look():
            found.append(check)
    except Exception as error:
        reason = first_line(error)
        found.append(Check(type(error).__name__, reason, State.BROKEN))
    return found


def _plain(text: str) -> str:
    """Return a text that rich prints as it is: brackets are no markup."""
    return text.replace("[", "\\[")
