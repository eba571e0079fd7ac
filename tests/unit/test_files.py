from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from autoprune.errors import RunError
from autoprune.io.files import first_link, make_folder, new_folder, remove_leftovers, write_atomic


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "µ\nx\r\n")
    assert target.read_bytes() == "µ\nx\r\n".encode()
    write_atomic(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    monkeypatch.setattr(os, "fsync", full) if step == "fsync" else monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=r"a\.txt cannot be written: No space left on device; free some space"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("make", "said"), [(os.mkdir, "is a folder"), (os.mkfifo, "is no regular file")])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    target = tmp_path / "target"
    make(target)
    before = target.stat()
    with pytest.raises(RunError, match=f"target {said}, and only a regular file is replaced; choose another place"):
        write_atomic(target, "new")
    assert target.stat() == before
    assert os.listdir(tmp_path) == ["target"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere/a\.txt cannot be written: .*; its folder does not exist"):
        write_atomic(tmp_path / "nowhere" / "a.txt", "x")


def test_a_folder_is_made_once_or_why_not_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
        assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"file cannot be written: File exists"):
        make_folder(tmp_path / "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(RunError, match=r"c cannot be written: No space left on device; free some space"):
        make_folder(tmp_path / "c")


def test_the_mode_of_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_stands_under_its_name_once_it_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with new_folder(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists()
    assert (target / "a").read_text() == "a"
    assert os.listdir(target.parent) == ["target"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask, "others may read it"


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (OSError(errno.ENOSPC, "No space left on device"), RunError, "target cannot be written: No space left"),
    ],
)
def test_a_folder_that_could_not_be_filled_leaves_nothing(
    tmp_path: Path, error: BaseException, expected: type[BaseException], said: str
) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "target") as folder:
            (folder / "a").write_text("a")
            raise error

    with pytest.raises(expected, match=said):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_exists_is_not_filled(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists already; choose another place"), new_folder(tmp_path):
        pytest.fail("the block must not begin")


# -- links are not followed ------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that nobody may write to through a link."""
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def test_a_file_that_is_a_link_is_replaced_and_what_it_names_is_left_alone(tmp_path: Path, victim: Path) -> None:
    for target in (victim, tmp_path / "absent"):
        link = tmp_path / "link"
        link.symlink_to(target)
        write_atomic(link, "new")
        assert not link.is_symlink()
        assert link.read_text() == "new"
        link.unlink()
    assert victim.read_text() == "mine"
    assert not (tmp_path / "absent").exists()


def test_a_temporary_file_that_somebody_laid_is_not_written_through(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    (tmp_path / ".a.known.tmp").symlink_to(victim)
    with pytest.raises(RunError, match="a cannot be written: File exists"):
        write_atomic(tmp_path / "a", "new")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "a").exists()


def test_names_of_temporary_files_cannot_be_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Path, "replace", lambda self, _: seen.append(self.name))
    for _ in range(2):
        write_atomic(tmp_path / "a", "x")
    assert len(set(seen)) == 2


def test_a_folder_that_is_a_dangling_link_is_not_filled(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(RunError, match="exists already"), new_folder(tmp_path / "link"):
        pytest.fail("the block must not begin")


def test_a_link_is_found_at_any_depth_and_not_entered(tmp_path: Path, victim: Path) -> None:
    run = tmp_path / "run"
    (run / "a" / "b").mkdir(parents=True)
    assert first_link(run) is None
    (tmp_path / "alias").symlink_to(run)
    assert first_link(tmp_path / "alias") is None
    for target in (victim, run, tmp_path / "absent"):
        link = run / "a" / "b" / "link"
        link.symlink_to(target)
        assert first_link(run) == link
        link.unlink()


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "levels" / ".quantize-a.tmp").mkdir(parents=True)
    (run / "levels" / ".quantize-a.tmp" / "network.onnx").write_text("")
    (run / ".model.pt.17.tmp").write_text("half")
    elsewhere.mkdir()
    kept = [run / "model.pt", run / "notes.tmp", run / ".hidden", elsewhere / "file"]
    for path in kept:
        path.write_text("")
    (run / ".link.tmp").symlink_to(elsewhere)
    remove_leftovers(run)
    assert all(path.exists() for path in kept)
    assert sorted(path.name for path in run.rglob("*")) == [".hidden", "levels", "model.pt", "notes.tmp"]
