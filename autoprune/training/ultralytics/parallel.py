"""A training in processes of its own, one per device: Ultralytics' DDP, with the pruned network kept.

Ultralytics hands its processes the trainer's class and arguments in a file, and every process makes the trainer anew
(``ultralytics/utils/dist.py``). A `Session` can be made from its arguments alone, takes its network from the file that
they name, and keeps it as it is. What Ultralytics' own launch does besides is left out: it deletes the run's folder,
and prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from autoprune.errors import DeviceError, TrainingError, is_out_of_memory
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.training.results import EpochReport, keep_epoch, read_epochs
from autoprune.training.ultralytics.reports import reports_in
from autoprune.training.ultralytics.session import Session

POLL_SECONDS = 0.5
"""How often to look for a finished epoch."""

STOP_SECONDS = 20.0
"""How long the processes may take to stop when they are asked to."""

LOG_FILE = "processes.log"

_ENDS_WITH_PARENT = """\
import os, threading

def end_with_parent():
    while os.read(0, 1):
        pass
    os._exit(1)

if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()

"""
"""What a process begins with: its input, which all have from this process, ends however this process does."""


def train_in_processes(
    session: Session, adapter: UltralyticsAdapter, on_epoch: Callable[[EpochReport], None] | None = None
) -> None:
    """Train as a session says, one process per device; within `process_state_kept`.

    Args:
        session: made with the devices and the network's file among its arguments; it does not train itself.
        adapter: of the network.
        on_epoch: called after every epoch.

    Raises:
        TrainingError: a process failed; what it said is in the message if it is one of our own sentences, else in
            ``processes.log``.
        DeviceError: memory ran out in a process.
    """
    folder = Path(session.save_dir)
    report = epoch_reporter(folder, adapter, epochs=session.epochs, on_epoch=on_epoch)
    with (folder / LOG_FILE).open("wb") as log, _script(session) as script, _started(session, script, log) as process:
        while True:
            try:
                code = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                report()
    report()
    if code:
        _explain(folder / LOG_FILE, session)


def epoch_reporter(
    folder: Path, adapter: UltralyticsAdapter, *, epochs: int, on_epoch: Callable[[EpochReport], None] | None
) -> Callable[[], None]:
    """Return what keeps and reports the epochs that a training has written into ``results.csv`` since its last call.

    It begins behind those that are kept: one that was written in the moment before a kill is not.
    """

    def written() -> Sequence[EpochReport]:
        return reports_in(folder / "results.csv", adapter, epochs=epochs)

    seen = min(len(read_epochs(folder)), len(written()))

    def report_new() -> None:
        nonlocal seen
        for report in written()[seen:]:
            seen += 1
            keep_epoch(report, folder)
            if on_epoch is not None:
                on_epoch(report)

    return report_new


@contextmanager
def _script(session: Session) -> Iterator[str]:
    """Write what the processes run, and what they make the session from; both are gone afterwards."""
    script = Path(stock.generate_ddp_file(session))
    try:
        script.write_text(_ENDS_WITH_PARENT + script.read_text("utf-8"), "utf-8")
        yield str(script)
    finally:
        stock.ddp_cleanup(session, str(script))


@contextmanager
def _started(session: Session, script: str, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the processes; they outlive neither the block nor this process."""
    command = [sys.executable]
    if session.world_size > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={session.world_size}"]
    process = subprocess.Popen([*command, script], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # which ends them, and torch's launcher with the last
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _explain(log: Path, session: Session) -> None:
    """Raise what a process failed of."""
    said = log.read_text(errors="replace")
    found = re.search(r"autoprune\.errors\.\w+: (.+)", said)
    if found:
        raise TrainingError(found[1])
    if is_out_of_memory(said):
        raise DeviceError(f"out of memory while fine-tuning on {session.args.device}; give a smaller batch")
    raise TrainingError(f"a training process on {session.args.device} failed; what it said is in {log}")
