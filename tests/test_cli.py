from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from autoprune.cli import main
from autoprune.config import Config
from autoprune.errors import BudgetUnreachableError, DataError

Answer = Callable[[Config], int]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Put a function in the place of the search command."""

    def install(run: Answer) -> None:
        module = ModuleType("autoprune.commands.search")
        monkeypatch.setattr(module, "run", lambda config, _screen: run(config), raising=False)
        monkeypatch.setitem(sys.modules, "autoprune.commands", ModuleType("autoprune.commands"))
        monkeypatch.setitem(sys.modules, "autoprune.commands.search", module)

    return install


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (3, 3)])
def test_the_command_gets_its_configuration(answering: Callable[[Answer], None], returned: int, code: int) -> None:
    seen: list[Config] = []

    def run(config: Config) -> int:
        seen.append(config)
        return returned

    answering(run)
    assert main(["search", "--budget", "flops=50%", "--seed", "5"]) == code
    assert [config.seed for config in seen] == [5]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("No labels"), 2, "autoprune: No labels\n"),
        (BudgetUnreachableError("Out of reach"), 3, "autoprune: Out of reach\n"),
        (KeyboardInterrupt(), 130, "autoprune: interrupted\n"),
        (KeyboardInterrupt("go on with --resume runs/x"), 130, "autoprune: go on with --resume runs/x\n"),
    ],
)
def test_an_error_becomes_one_line_and_a_code(
    answering: Callable[[Answer], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def run(_: Config) -> int:
        raise error

    answering(run)
    assert main(["search", "--budget", "flops=50%"]) == code
    assert capsys.readouterr() == ("", said)


def test_a_bug_is_not_hidden(answering: Callable[[Answer], None]) -> None:
    def run(_: Config) -> int:
        raise ZeroDivisionError

    answering(run)
    with pytest.raises(ZeroDivisionError):
        main(["search", "--budget", "flops=50%"])


def test_the_module_can_be_run(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoprune", "search", "--episods", "3"], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "autoprune: --episods is not an option of autoprune search; did you mean --episodes?\n"
