"""The command line: the only place that prints or sets exit codes."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing

from click.shell_completion import shell_complete

from autoprune.cli.arguments import COMPLETION, build_parser, parse
from autoprune.cli.stopping import stoppable
from autoprune.cli.terminal import Terminal, writing
from autoprune.cli.words import in_options
from autoprune.config import Config, RunConfig
from autoprune.config.files import resume_command
from autoprune.errors import AutopruneError, AutopruneWarning
from autoprune.workflows.call import Caller, located, run_workflow

INTERRUPTED = 130


def _understood(argv: Sequence[str]) -> tuple[str, Config]:
    """Return what ``parse`` does; help and the like reach standard output, or the reason why not is shown."""
    with writing():
        try:
            return parse(argv)
        finally:
            sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the command line without the program's name; by default the process's.

    Returns:
        0; 1 if ``doctor`` found something broken; or the exit code of the error that was printed: 2 for bad input, 3
        for a budget that cannot be met, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    if asked := os.environ.get(COMPLETION):
        return shell_complete(build_parser(), {}, "autoprune", COMPLETION, asked)
    with stoppable() as stop:
        code = _run(argv)
    return stop.exit_code if code == INTERRUPTED else code


def _run(argv: Sequence[str] | None) -> int:
    """Run one command, and print its error if there is one."""
    terminal = Terminal()
    try:
        words = sys.argv[1:] if argv is None else argv
        command, config = _understood(words)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third parties'; ours are shown in one line
            warnings.simplefilter("always", AutopruneWarning)
            warnings.showwarning = lambda message, *_, **__: terminal.warn(str(message))
            caller = Caller(shlex.join(["autoprune", *words]), resume_command, in_options)
            if isinstance(config, RunConfig):
                terminal.quiet, terminal.verbose = config.quiet, config.verbose
            with closing(terminal):
                finished = run_workflow(command, located(config, terminal), terminal, caller)
            return finished.exit_code
    except AutopruneError as error:
        terminal.warn(f"autoprune: {error}")
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        terminal.warn(f"autoprune: {interrupt}" if str(interrupt) else "autoprune: interrupted")
        return INTERRUPTED
