"""How bad input is refused: one sentence on standard error, an exit code, nothing left behind."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.cli.main import main
from tests.helpers.detectors import build, write_detector
from tests.helpers.world import arguments

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
        assert words in sentence, sentence
    assert not _INTERNALS.search(out + err), _INTERNALS.search(out + err)
    assert listing(folder) == before, "a refused command leaves nothing"
    return sentence


def words(command: str, world: Path, *extra: str) -> list[str]:
    """Return the words of a command on the tiny world, which writes to ``run``."""
    budget = ("--budget", "flops=60%") if command in ("search", "netadapt", "compare") else ()
    return arguments(command, world, Path("run"), *extra, *budget)


def write_zoo(path: Path, world: Path) -> Path:
    """Fill a folder with everything that is not what it is given for; return it."""
    (path / "folder").mkdir()
    os.mkfifo(path / "fifo")
    os.mkfifo(path / "fifo.pt")
    os.mkfifo(path / "fifo.yaml")
    os.mkfifo(path / "fifo.cfg")
    (path / "loop.pt").symlink_to("loop.pt")
    (path / "gone.pt").symlink_to("nowhere")
    (path / "folder.pt").mkdir()
    (path / "folder.yaml").mkdir()
    for name in ("empty.pt", "empty.json", "empty.cfg", "empty.yaml"):
        (path / name).write_bytes(b"")
    for suffix in ("pt", "json", "cfg", "yaml", "weights"):
        (path / f"noise.{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
        (path / f"text.{suffix}").write_text("hello\n")
    whole = (world / "best.pt").read_bytes()
    (path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"model": None}, path / "none.pt")
    torch.save([1, 2], path / "list.pt")
    torch.save(build().state_dict(), path / "state.pt")
    torch.save(nn.Conv2d(3, 8, 1).state_dict(), path / "layer.pt")
    torch.save({"model": nn.Sequential(nn.Conv2d(3, 8, 1))}, path / "other.pt")
    fused = build()
    fused.fuse(verbose=False)
    write_detector(path / "fused.pt", fused)
    _write_texts(path)
    return path


def _write_texts(path: Path) -> None:
    """Write texts that are no policies; those that are, of another network, are made in their test."""
    (path / "deep.json").write_text("[" * 100_000)
    (path / "nan.json").write_text('{"schema_version": NaN}')
    (path / "twice.json").write_text('{"schema_version": 1, "schema_version": 1}')
    (path / "list.json").write_text("[]")
    (path / "null.json").write_text("null")
    (path / "version.json").write_text('{"schema_version": 99}')
    (path / "latin.json").write_bytes('{"schema_version": "é"}'.encode("latin-1"))
