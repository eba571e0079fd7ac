"""Writing files so that a reader never sees half of one, and saying clearly why a write failed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from autoprune.errors import RunError

_WAYS_OUT = {
    errno.ENOSPC: "free some space on that disk, or choose another place",
    errno.EDQUOT: "free some of your disk quota, or choose another place",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that you may write to",
    errno.ENOENT: "its folder does not exist",
}


@contextmanager
def saying_why(path: Path, action: str = "written") -> Iterator[None]:
    """Turn an operating system error of the block into a ``RunError`` that names the file and the way out.

    Args:
        path: the file that the block reads or writes.
        action: what the block does to the file, as a participle.

    Raises:
        RunError: the block raised an ``OSError``: disk full, not permitted, no such folder.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = _WAYS_OUT.get(error.errno or 0)
        raise RunError(f"{path} cannot be {action}: {reason}" + (f"; {hint}" if hint else "")) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a kill at any moment leaves the old file or the new one.

    The content goes to a temporary file beside the target, reaches the disk, and is renamed over the target.

    Args:
        path: the file to write; its folder must exist.
        content: all of it; text is written as UTF-8 with the line ends it has.

    Raises:
        RunError: the file cannot be written; the old one, if any, is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with saying_why(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that stands under its name only once the block is through.

    The block gets an empty folder beside the target, which is renamed in the end, or removed where the block fails.

    Raises:
        RunError: the target exists already, or it cannot be written.
    """
    if path.exists():
        raise RunError(f"{path} exists already; choose another place")
    with saying_why(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as scratch:
            folder = Path(scratch) / path.name  # others may read this one, as they may not the temporary one
            folder.mkdir()
            yield folder
            folder.rename(path)
        sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder that nobody else writes to."""
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of a folder durable, where the system allows it."""
    with suppress(OSError):  # Windows cannot open a folder; some network disks cannot sync one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
