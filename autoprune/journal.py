"""The record of everything that a run found out: append-only, durable, replayed by a resume.

One JSON object per line: ``{"kind": ..., "key": ..., "value": ..., "crc": "8 hex digits"}``; the first line is the
header. A record is on the disk when ``append`` returns, so every score that a strategy received survives ``kill -9``.
"""

from __future__ import annotations

import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from autoprune.errors import AutopruneWarning, RunError
from autoprune.io.files import BINARY, NO_LINK, saying_why, sync_folder
from autoprune.io.journal_lines import JSON, Record, line_of, record_of, text_of

JOURNAL_FILE = "journal.jsonl"
"""The file of a run folder that is its journal."""

_SCHEMA = 3  # 1: metrics were called main and lenient; 2: iterations of netadapt without the changes of scores
_HEADER = "header"


class JournalWarning(AutopruneWarning):
    """The last record of a journal was cut off and is dropped, or the journal cannot be locked."""


class Recorder(ABC):
    """Keeps what was found out, so that it is not found out twice."""

    @abstractmethod
    def lookup(self, kind: str, key: JSON) -> Any:
        """Return what was kept last under this kind and key, or None."""

    @abstractmethod
    def append(self, kind: str, key: JSON, value: JSON) -> None:
        """Keep a value, which is not None."""

    def once(self, kind: str, key: JSON, compute: Callable[[], Any]) -> Any:
        """Return what is kept under this kind and key, or compute and keep it (plain JSON values)."""
        found = self.lookup(kind, key)
        if found is None:
            found = compute()
            self.append(kind, key, found)
        return found


class MemoryRecorder(Recorder):
    """Keeps records as long as the process lives."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Any] = {}

    def lookup(self, kind: str, key: JSON) -> Any:
        """Return what was kept, or None."""
        return self._values.get((kind, repr(key)))

    def append(self, kind: str, key: JSON, value: JSON) -> None:
        """Keep a value."""
        self._values[kind, repr(key)] = value


class Journal(Recorder):
    """The journal of one run, open for one process at a time. A context manager; ``close`` lets go of the file.

    Unpickled or copied, it has no file: it knows what was recorded, and keeps what is appended in memory alone.

    Attributes:
        path: the file.
        header: what ``create`` was given; the caller checks that it fits what is being resumed.
    """

    def __init__(self, path: Path, descriptor: int | None, header: Any, records: Sequence[Record]) -> None:
        """Use ``create``, ``open`` or ``read``."""
        self.path = path
        self.header: Any = header
        self._descriptor = descriptor
        self._in_memory = False
        self._records: dict[str, list[Record]] = {}
        self._values: dict[tuple[str, str], Any] = {}
        for record in records:
            self._keep(record)

    @classmethod
    def create(cls, path: Path, header: Mapping[str, JSON]) -> Journal:
        """Begin a journal.

        Raises:
            RunError: the file exists already or cannot be written.
        """
        if os.path.lexists(path):
            raise RunError(f"{path} exists already; resume that run with `resume` or choose another folder with `out`")
        with saying_why(path):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        try:
            _lock(descriptor, path)
            line = line_of(_HEADER, _SCHEMA, header)
            _write(descriptor, line, path)
            sync_folder(path.parent)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return cls(path, descriptor, record_of(line).value, ())

    @classmethod
    def open(cls, path: Path, *, check: Callable[[Record], bool] = lambda _: True) -> Journal:
        """Read a journal and go on with it.

        A last record that was cut off is dropped with a ``JournalWarning``, and the file is cut to what is whole.

        Args:
            path: the file.
            check: says whether a record holds what its kind has; a checksum says only that nothing was changed later.

        Raises:
            RunError: the file is missing, a symbolic link or not a journal, is broken before its last record, or is in
                use.
        """
        descriptor = _opened(path, os.O_RDWR | os.O_APPEND)
        try:
            with saying_why(path, "read"):
                data = _content(descriptor)
            records, whole = _read(data, path)
            _check(records, check, path)
            if whole < len(data):
                with saying_why(path):
                    os.ftruncate(descriptor, whole)
                    os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, records[0].value, records[1:])

    @classmethod
    def read(cls, path: Path, *, check: Callable[[Record], bool] = lambda _: True) -> Journal:
        """Read a journal that ends here, and leave the file as it is; nothing can be added.

        Args:
            path: the file.
            check: as for ``open``.

        Raises:
            RunError: as ``open``.
        """
        descriptor = _opened(path, os.O_RDONLY)
        try:
            with saying_why(path, "read"):
                data = _content(descriptor)
        finally:
            os.close(descriptor)
        records, _ = _read(data, path)
        _check(records, check, path)
        return cls(path, None, records[0].value, records[1:])

    def append(self, kind: str, key: JSON, value: JSON) -> None:
        """Keep a record; it is on the disk when this returns, or not at all when this raises.

        Args:
            kind: what sort of thing.
            key: what it is about; the last record of the same kind and key is the one that ``lookup`` finds.
            value: what was found; not None, which is how ``lookup`` says that there is nothing.

        Raises:
            RunError: the journal is closed or cannot be written.
            TypeError: the value is None, or a key or value is not JSON.
        """
        if value is None:
            raise TypeError("A journal's value must not be None: that is what a lookup returns for what is absent")
        if kind == _HEADER:
            raise TypeError(f"{_HEADER!r} is the kind of a journal's first line only")
        if self._descriptor is None and not self._in_memory:
            raise RunError(f"{self.path} is closed; open it again to go on")
        line = line_of(kind, key, value)
        if self._descriptor is not None:
            _write(self._descriptor, line, self.path)
        self._keep(record_of(line))

    def lookup(self, kind: str, key: JSON) -> Any:
        """Return the value of the last record of this kind and key, or None; not to be modified."""
        return self._values.get((kind, text_of(key)))

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all records."""
        return frozenset(self._records)

    def records(self, kind: str) -> tuple[Record, ...]:
        """Return all records of a kind, in the order they were appended."""
        return tuple(self._records.get(kind, ()))

    def close(self) -> None:
        """Let go of the file, so that another process may resume the run. A second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None, "_in_memory": True}

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, record: Record) -> None:
        self._records.setdefault(record.kind, []).append(record)
        self._values[record.kind, text_of(record.key)] = record.value


def read_header(path: Path) -> Mapping[str, Any]:
    """Return the header of a journal that may be in use; empty if it is not legible: who opens the journal says why."""
    try:
        if path.is_symlink() or not path.is_file():
            return {}
        with path.open("rb") as file:
            header = record_of(file.readline()).value
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return header if isinstance(header, Mapping) else {}


# -- the file --------------------------------------------------------------------------------------


def _opened(path: Path, flags: int) -> int:
    """Open an existing journal for this process alone."""
    if path.is_symlink():
        raise RunError(f"{path} must be a file of its run, and is a symbolic link; put the file itself there")
    if not path.is_file():
        raise RunError(f"{path.parent} is not a run: it has no {path.name}")
    with saying_why(path, "opened"):
        descriptor = os.open(path, flags | NO_LINK | BINARY)
    try:
        _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _content(descriptor: int) -> bytes:
    """Return what an open file holds: what its path names may be another file by now."""
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _read(data: bytes, path: Path) -> tuple[list[Record], int]:
    """Return all whole records and how many bytes they take."""
    lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
    tail = data[sum(map(len, lines)) :]
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(record_of(line))
        except (ValueError, TypeError, RecursionError) as error:
            if number < len(lines) or tail:
                raise RunError(
                    f"{path} is broken at line {number} ({error}): what follows cannot be trusted; "
                    "restore the file from a copy or start the run again"
                ) from error
            tail = line
    if not records or records[0].kind != _HEADER:
        raise RunError(f"{path} does not begin with a journal's header: the run was killed at its start, or it is none")
    if records[0].key != _SCHEMA:
        raise RunError(
            f"{path} has the schema version {records[0].key!r}, this autoprune reads {_SCHEMA}; start the run again"
        )
    if tail:
        warnings.warn(
            f"{path}: the last record was cut off ({len(tail)} bytes) and is dropped", JournalWarning, stacklevel=4
        )
    return records, len(data) - len(tail)


def _check(records: Sequence[Record], check: Callable[[Record], bool], path: Path) -> None:
    """Refuse a header that is no object, and records that do not pass the check."""
    wrong = 1 if not isinstance(records[0].value, Mapping) else None
    wrong = wrong or next((line for line, record in enumerate(records[1:], start=2) if not check(record)), None)
    if wrong is not None:
        raise RunError(
            f"{path}: line {wrong} ({records[wrong - 1].kind!r}) does not hold what autoprune writes there; restore "
            "the file from a copy or start the run again"
        )


def _write(descriptor: int, line: bytes, path: Path) -> None:
    """Write a line and wait until it is on the disk; after a failure the file is as before."""
    with saying_why(path):
        before = os.fstat(descriptor).st_size
        try:
            rest = line
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, before)
            raise


def _lock(descriptor: int, path: Path) -> None:
    """Take the file for this process until it is closed or the process ends; Windows goes without."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(f"{path} is in use by another process; wait for it or stop it, then resume") from error
    except OSError as error:
        warnings.warn(
            f"{path} cannot be locked ({error.strerror}): do not resume it twice", JournalWarning, stacklevel=4
        )
