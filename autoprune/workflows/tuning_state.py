"""How far the fine-tune of a worker is: one file in the folder of its network, see `tuning_workers`."""

from __future__ import annotations

import io
import secrets
import zipfile
from pathlib import Path

from autoprune.io.files import saying_why, write_atomic

FINETUNE = "finetune"
"""Folder of a fine-tune in that of its network."""


def kept_in(folder: Path) -> Path | None:
    """Return the file for the state of a fine-tune that a worker has begun; None if none has."""
    return next(folder.glob(f"worker-{'[0-9a-f]' * 32}.zip"), None)


def state_file(folder: Path) -> Path:
    """Return the file for the state of a fine-tune, which is there then, with what was trained in the folder itself.

    Nobody can guess its name: a worker that finds it sees this very folder, and not one of that name on its machine.
    """
    found = kept_in(folder)
    if found is None:
        found = folder / f"worker-{secrets.token_hex(16)}.zip"
        _write(folder, found)
    return found


def keep(folder: Path, state: Path) -> None:
    """Keep the fine-tune in a folder in the file for its state, if that is seen here and still wanted."""
    if state.exists():
        _write(folder, state)


def restore(folder: Path, state: Path) -> None:
    """Write the fine-tune that was kept in a file into a folder, if that is seen here."""
    if zipfile.is_zipfile(state):
        with saying_why(folder), zipfile.ZipFile(state) as archive:
            archive.extractall(folder)


def take_over(folder: Path, *, wanted: bool) -> None:
    """Remove the file of a worker that has begun a fine-tune, so that it goes on in the folder itself.

    Args:
        folder: of the network.
        wanted: what the file holds is written into the folder before.
    """
    state = kept_in(folder)
    if state is not None:
        if wanted:
            restore(folder, state)
        state.unlink()


def _write(folder: Path, state: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in (folder / FINETUNE).rglob("*"):
            archive.write(file, file.relative_to(folder))
    write_atomic(state, content.getvalue())
