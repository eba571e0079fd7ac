"""The command line: the only place that prints or sets exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from autoprune.arguments import parse
from autoprune.config import Config
from autoprune.errors import AutopruneError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the command line without the program's name; by default the process's.

    Returns:
        0, or the exit code of the error that was printed: 2 for bad input, 3 for a budget that cannot be met, 130
        after Ctrl-C.
    """
    try:
        command, config = parse(sys.argv[1:] if argv is None else argv)
        return _run(command, config)
    except AutopruneError as error:
        print(f"autoprune: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print(f"autoprune: {interrupt}" if str(interrupt) else "autoprune: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(command: str, config: Config) -> int:
    """Hand over to ``autoprune.commands.<command>.run``, imported late so that ``--help`` needs no torch."""
    return int(importlib.import_module(f"autoprune.commands.{command}").run(config) or 0)
