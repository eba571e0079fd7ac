"""The options of ``autoprune doctor``."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoprune.choices import BOARDS, device_name, is_board
from autoprune.config._checks import by_place
from autoprune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Show what this installation and this machine have: packages, devices, runtimes, load, cache; exit 1 if broken.

    Attributes:
        board: the address of a board, ssh://[USER@]HOST[:PORT], to look at in place of this machine: whether it is
            reached, its Python and runtimes, how fast and hot it is, and what to install there
        json: print JSON instead of a table
    """

    board: tuple[str, ...] = field(default=(), metadata=by_place("BOARD"))
    json: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "board", tuple(map(device_name, self.board)))
        for board in self.board:
            if not is_board(board):
                raise ConfigError(f"`board` must be {BOARDS}, got {board!r}")
