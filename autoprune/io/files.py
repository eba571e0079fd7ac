"""Writing files so that a reader never sees half of one, and saying clearly why a write failed."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
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


NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag of ``os.open`` with which it refuses a symbolic link; Windows has none."""

BINARY = getattr(os, "O_BINARY", 0)
"""Flag of ``os.open`` without which Windows changes line ends."""


_CHUNK = 2**20


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
        hint = _WAYS_OUT.get(error.errno or errno.ENOSPC) if action == "written" else None  # numpy names no number
        raise RunError(f"{path} cannot be {action}: {reason}" + (f"; {hint}" if hint else "")) from error


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, unless they are there; return it.

    Raises:
        RunError: it cannot be made, or is a file.
    """
    with saying_why(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def why_no_file(path: Path) -> str | None:
    """Return why nothing can be read from a path, as the end of a sentence; None if it is a regular file.

    A pipe or a device is none: opening it may wait for ever.
    """
    try:
        if path.is_file():
            return None
        return "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
    except OSError as error:  # such as a name that is too long
        return f"cannot be read: {error.strerror}"


def read_bytes(path: Path) -> bytes:
    """Read a regular file.

    Raises:
        OSError: as ``Path.read_bytes``; also of a pipe or a device, which may be read for ever.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "It is no regular file")
    return path.read_bytes()


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits, or ``unreadable``."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK):
                found.update(chunk)
    except OSError:
        return "unreadable"
    return found.hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a kill at any moment leaves the old file or the new one.

    The content goes to a temporary file next to the target, reaches the disk and is renamed over the target. No link is
    followed: a target that is one is replaced. Folders, pipes and devices are not.

    Args:
        path: the file to write; its folder must exist.
        content: all of it; text is written as UTF-8 with the line ends it has.

    Raises:
        RunError: the file cannot be written; the old one, if any, is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    with saying_why(path):
        if os.path.lexists(path) and not path.is_symlink() and (reason := why_no_file(path)):
            raise RunError(f"{path} {reason}, and only a regular file is replaced; choose another place")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | BINARY, 0o666)
        try:
            with open(descriptor, "wb") as file:
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

    The block gets an empty folder next to the target, which is renamed in the end, or removed if the block fails.

    Raises:
        RunError: the target exists already, or it cannot be written.
    """
    if os.path.lexists(path):
        raise RunError(f"{path} exists already; choose another place")
    make_folder(path.parent)
    with saying_why(path):
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
    """Make a new or renamed entry of a folder durable, if the system allows it."""
    with suppress(OSError):  # Windows cannot open a folder; some network disks cannot sync one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def first_link(folder: Path) -> Path | None:
    """Return a symbolic link in a folder or below it, or None if there is none; the folder itself may be one."""
    for place, folders, files in os.walk(folder):
        for name in sorted((*folders, *files)):
            path = Path(place, name)
            if path.is_symlink():
                return path
    return None


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
