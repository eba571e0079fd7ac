from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from autoprune.cli.main import COMPLETION, main
from autoprune.config import Config
from autoprune.errors import BudgetUnreachableError, DataError
from autoprune.workflows.call import Finished
from tests.helpers.world import arguments, unexpected

Answer = Callable[[Config], bool]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Put a function in the place of the search command."""

    def install(run: Answer) -> None:
        module = ModuleType("autoprune.workflows.search")
        monkeypatch.setattr(
            module, "run", lambda config, _listener, _caller: Finished(Path("run"), held=run(config)), raising=False
        )
        monkeypatch.setitem(sys.modules, "autoprune.workflows.search", module)

    return install


@pytest.mark.parametrize(("returned", "code"), [(True, 0), (False, 3)])
def test_the_command_gets_its_configuration(answering: Callable[[Answer], None], returned: bool, code: int) -> None:
    seen: list[Config] = []

    def run(config: Config) -> bool:
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
    answering: Callable[[Answer], None], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def run(_: Config) -> bool:
        raise error

    answering(run)
    assert main(["search", "--budget", "flops=50%"]) == code
    assert capsys.readouterr() == ("", said)


def test_a_bug_is_not_hidden(answering: Callable[[Answer], None]) -> None:
    def run(_: Config) -> bool:
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


def leave(_: Config) -> bool:
    raise SystemExit(0)


def test_a_command_does_not_end_by_anothers_exit(
    answering: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answering(leave)
    assert main(["search", "--budget", "flops=50%"]) == 2
    assert "called sys.exit(0) in the middle of search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"search", "netadapt", "data"}),
        ("search --trust-ch", {"--trust-checkpoint"}),
        ("search --precision ", {"fp32", "fp16", "bf16", "int8"}),
        ("search --seed 3 --rule p", {"projected"}),
        ("search --xyzzy --budget", {"--budget"}),
    ],
)
def test_a_shell_is_told_what_can_follow(
    words: str, expected: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"autoprune {words}"
    monkeypatch.setenv(COMPLETION, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert main([]) == 0
    offered = {text.partition(",")[2] for text in capsys.readouterr().out.split()}
    assert expected <= offered
    assert len(expected) == len(offered) or not words


# -- standard output that cannot be written --------------------------------------------------------

PYTHON = f"{sys.executable} -m autoprune"
NO_SPACE = "autoprune: Standard output cannot be written: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["--version", "search --help", "search --print-config"])
def test_a_full_disk_behind_standard_output_is_told(root: Path, words: str) -> None:
    done = subprocess.run(f"{PYTHON} {words} > /dev/full", shell=True, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(NO_SPACE)
    assert len(done.stderr.splitlines()) == 1


def test_nobody_reads_standard_output(root: Path) -> None:
    words = f"set -o pipefail; {PYTHON} search --help | true"
    done = subprocess.run(["bash", "-c", words], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


class Full(io.StringIO):
    """A standard output on a disk that fills up, or that is closed, after some lines."""

    def __init__(self, error: OSError, *, lines: int) -> None:
        super().__init__()
        self.error, self.left = error, lines

    def write(self, text: str) -> int:
        self.left -= text.count("\n")
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(errno.ENOSPC, "No space left on device"), 2), (BrokenPipeError(errno.EPIPE, "pipe"), 1)],
)
def test_a_run_whose_output_fails_is_kept_and_goes_on(
    tiny: Path,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    code: int,
) -> None:
    words = arguments("sensitivity", tiny, tmp_path / "run", "--ratios", "0.5")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full(error, lines=8))
        if code == 2:
            assert main(words) == code
        else:
            with pytest.raises(SystemExit) as caught:
                main(words)
            assert caught.value.code == code
    said = unexpected(capsys.readouterr().err)
    assert said.startswith(NO_SPACE) if code == 2 else said == ""
    assert main(["sensitivity", "--resume", str(tmp_path / "run")]) == 0


def test_a_reader_that_leaves_before_anything_is_found_leaves_no_folder(
    tiny: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments("sensitivity", tiny, tmp_path / "run", "--ratios", "0.5")
    monkeypatch.setattr(sys, "stdout", Full(BrokenPipeError(errno.EPIPE, "pipe"), lines=1))
    with pytest.raises(SystemExit):
        main(words)
    assert not (tmp_path / "run").exists()


def test_the_command_line_starts_without_heavy_packages(root: Path) -> None:
    code = "import sys, autoprune.cli.main; print([name for name in ('numpy', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
