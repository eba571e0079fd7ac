"""How bad input is refused: one sentence on standard error, an exit code, nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from autoprune.cli import main

_INTERNALS = re.compile(r"Traceback|NoneType|\b0x[0-9a-f]{6}|<class|object at|Namespace|\bself\b|site-packages")
"""What a sentence for people never has in it."""

_LONGEST = 900


def listing(folder: Path) -> set[Path]:
    """Return everything in a folder and below; links are not followed."""
    return {path.relative_to(folder) for path in folder.rglob("*")}


def refuse(
    argv: Sequence[str], said: Sequence[str], capsys: pytest.CaptureFixture[str], *, folder: Path, code: int = 2
) -> str:
    """Run a command line that must be refused, in a folder that must stay as it is; return its sentence.

    Args:
        argv: the command line.
        said: words of the sentence: the value that is wrong, the rule, the way out.
        capsys: what is printed.
        folder: where the command runs, the working directory.
        code: the exit code, 3 for a budget out of reach.
    """
    before = listing(folder)
    assert main(argv) == code
    out, err = capsys.readouterr()
    (sentence,) = err.strip().splitlines()[-1:]
    others = [line for line in err.strip().splitlines()[:-1] if not line.startswith("Skipped ")]
    assert not others, "one sentence, and not more"
    assert sentence.startswith("autoprune: ")
    assert len(sentence) <= _LONGEST
    for words in said:
        assert words in sentence
    assert not _INTERNALS.search(out + err), _INTERNALS.search(out + err)
    assert listing(folder) == before, "a refused command leaves nothing"
    return sentence
