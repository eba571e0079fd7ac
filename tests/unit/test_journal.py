from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import RunError
from autoprune.io.journal_lines import Record, checksum
from autoprune.journal import Journal, JournalWarning

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("$float"), inner, max_size=4),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equality to the last bit and to the type: NaN equals NaN, 0.0 differs from -0.0, 1 from 1.0 and True."""
    return repr(left) == repr(right)


def write(path: Path, *values: Any) -> bytes:
    with Journal.create(path, {"seed": 0}) as journal:
        for index, value in enumerate(values):
            journal.append("evaluation", [index], value)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_a_journal_opened_again_is_the_journal_that_was_closed(path: Path) -> None:
    with Journal.create(path, {"seed": 3, "budget": ["flops=50%"]}) as journal:
        journal.append("evaluation", [8, 16], {"score": -0.1})
        journal.append("latency", "dense", {"ms": [1.5, 2.5]})
        journal.append("evaluation", [8, 8], {"score": -0.3})
        before = (journal.header, journal.records("evaluation"), journal.records("latency"))
    with Journal.open(path) as journal:
        assert (journal.header, journal.records("evaluation"), journal.records("latency")) == before
        assert journal.header == {"seed": 3, "budget": ["flops=50%"]}
        assert journal.records("evaluation")[1] == Record("evaluation", [8, 8], {"score": -0.3})
        assert journal.lookup("evaluation", (8, 16)) == {"score": -0.1}
        assert journal.lookup("latency", [8, 16]) is None
        assert journal.records("nothing") == ()
        journal.append("evaluation", [4, 4], 1.0)
    with Journal.open(path) as journal:
        assert journal.lookup("evaluation", [4, 4]) == 1.0
        assert len(journal.records("evaluation")) == 3


def test_the_last_record_of_a_key_is_the_one_found(path: Path) -> None:
    with Journal.create(path, {}) as journal:
        journal.append("batch", 0, 16)
        journal.append("batch", 0, 8)
        assert journal.lookup("batch", 0) == 8
        assert [record.value for record in journal.records("batch")] == [16, 8]


def test_keys_are_told_apart_by_type_and_not_by_order_of_names(path: Path) -> None:
    with Journal.create(path, {}) as journal:
        for key in (1, 1.0, True, "1"):
            journal.append("k", key, repr(key))
        assert [journal.lookup("k", key) for key in (1, 1.0, True, "1")] == ["1", "1.0", "True", "'1'"]
        journal.append("k", {"a": 1, "b": 2}, "names")
        assert journal.lookup("k", {"b": 2, "a": 1}) == "names"


@given(key=json_values, value=json_values.filter(lambda value: value is not None))
def test_any_json_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, key: Any, value: Any) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    with Journal.create(path, {"value": value}) as journal:
        journal.append("k", key, value)
        live = journal.records("k")
    assert json.loads(path.read_text().splitlines()[1], parse_constant=pytest.fail)  # strict JSON, readable by others
    with Journal.open(path) as journal:
        assert same(journal.records("k"), live)
        assert same(journal.records("k"), (Record("k", key, value),))
        assert same(journal.lookup("k", key), value)
        assert same(journal.header, {"value": value})


def test_what_is_found_in_a_live_journal_is_what_a_resume_finds(path: Path) -> None:
    with Journal.create(path, {}) as journal:
        journal.append("k", 0, {"pair": (1, math.inf)})
        assert journal.lookup("k", 0) == {"pair": [1, math.inf]}


@pytest.mark.parametrize("value", [None, object(), {1: 2}, b"bytes", {"deep": [object()]}])
def test_what_is_not_json_is_refused_and_leaves_no_trace(path: Path, value: Any) -> None:
    with Journal.create(path, {}) as journal:
        before = path.read_bytes()
        with pytest.raises(TypeError):
            journal.append("k", 0, value)
        assert path.read_bytes() == before
        assert journal.lookup("k", 0) is None


def test_the_header_kind_is_reserved(path: Path) -> None:
    with Journal.create(path, {}) as journal, pytest.raises(TypeError, match="first line only"):
        journal.append("header", 0, 1)


# -- what a kill leaves ----------------------------------------------------------------------------


def test_a_last_record_cut_at_any_byte_is_dropped_and_the_file_is_mended(path: Path) -> None:
    whole = write(path, 1.25, {"score": math.nan})
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.warns(JournalWarning, match=r"last record was cut off \(\d+ bytes\)"):
            journal = Journal.open(path)
        assert [record.value for record in journal.records("evaluation")] == [1.25]
        journal.append("evaluation", [1], "again")
        journal.close()
        with Journal.open(path) as journal:
            assert [record.value for record in journal.records("evaluation")] == [1.25, "again"]


def test_a_journal_that_is_only_read_stays_as_it_is(path: Path) -> None:
    whole = write(path, 1.25, 2.5)
    path.write_bytes(whole[:-3])
    path.chmod(0o444)
    with pytest.warns(JournalWarning, match="cut off"):
        journal = Journal.read(path)
    assert journal.header == {"seed": 0}
    assert [record.value for record in journal.records("evaluation")] == [1.25]
    with pytest.raises(RunError, match="is closed"):
        journal.append("k", 0, 1)
    assert path.read_bytes() == whole[:-3]
    path.unlink()
    with Journal.create(path, {}), pytest.raises(RunError, match="in use by another process"):
        Journal.read(path)
    with pytest.raises(RunError, match="is not a run"):
        Journal.read(path.with_name("absent"))


def test_a_journal_cut_between_records_opens_without_a_word(path: Path) -> None:
    whole = write(path, 1.25, 2.5)
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    with Journal.open(path) as journal:
        assert [record.value for record in journal.records("evaluation")] == [1.25]


def test_a_flipped_byte_anywhere_is_noticed(path: Path) -> None:
    whole = write(path, 1.25, 2.5)
    lines = whole.splitlines(keepends=True)
    middle, last = len(lines[0]), len(lines[0]) + len(lines[1])
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 0x01
        path.write_bytes(flipped)
        if at < last - 1:
            expected = r"broken at line|does not begin" if at < middle else r"broken at line 2"
            with pytest.raises(RunError, match=expected):
                Journal.open(path)
            assert path.read_bytes() == bytes(flipped), "a refused file is left as it is"
        else:
            # The line end before the last record belongs to both: without it both are the last line.
            with pytest.warns(JournalWarning, match="cut off"), Journal.open(path) as journal:
                assert [record.value for record in journal.records("evaluation")] == [1.25][: at >= last]


@pytest.mark.parametrize("tail", [b"\x00" * 512, b"\xff\xfe", b"{", b"\n", b"null\n", b"[" * 100_000 + b"\n"])
def test_rubbish_at_the_end_is_dropped(path: Path, tail: bytes) -> None:
    path.write_bytes(write(path, 1.25) + tail)
    with pytest.warns(JournalWarning, match="cut off"), Journal.open(path) as journal:
        assert [record.value for record in journal.records("evaluation")] == [1.25]


@pytest.mark.parametrize("content", [b"", b"{", b"hello\n", b'{"kind": "k"}\n'])
def test_a_file_without_a_header_is_no_journal(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RunError, match="does not begin with a journal's header"):
        Journal.open(path)


def test_a_journal_of_another_schema_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.journal._SCHEMA", 99)
    write(path)
    monkeypatch.undo()
    with pytest.raises(RunError, match="schema version 99, this autoprune reads 3; start the run again"):
        Journal.open(path)


@pytest.mark.parametrize("value", ["1e5", "1_0", 5, int("9" * 400), None])
def test_numbers_that_json_has_are_not_written_in_another_way(path: Path, value: Any) -> None:
    write(path)
    body = {"kind": "evaluation", "key": [0], "value": {"$float": value}}
    line = json.dumps({**body, "crc": checksum(body)})
    path.write_text(path.read_text() + line + "\n" + line + "\n")
    with pytest.raises(RunError, match="broken at line 2"):
        Journal.open(path)


_ENDLESS = """
import sys
from pathlib import Path
from autoprune.journal import Journal
with Journal.create(Path(sys.argv[1]), {"seed": 0}) as journal:
    for index in range(10**9):
        journal.append("evaluation", [index], {"score": index / 7})
        print(index, flush=True)
"""


def test_everything_told_before_kill_9_is_there(path: Path, root: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    with pytest.raises(RunError, match="in use by another process"):
        Journal.open(path)
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().splitlines() if line]
    process.wait()
    process.stdout.close()
    with Journal.open(path) as journal:
        found = journal.records("evaluation")
        assert len(found) >= len(told) >= 20
        assert [(record.key, record.value["score"]) for record in found] == [([i], i / 7) for i in range(len(found))]


# -- one writer, and writes that fail --------------------------------------------------------------


def test_a_journal_is_open_once(path: Path) -> None:
    with Journal.create(path, {}), pytest.raises(RunError, match="in use by another process"):
        Journal.open(path)
    first = Journal.open(path)
    with pytest.raises(RunError, match="in use"):
        Journal.open(path)
    first.close()
    first.close()
    with pytest.raises(RunError, match="is closed"):
        first.append("k", 0, 1)
    Journal.open(path).close()


def test_a_run_is_not_overwritten(path: Path) -> None:
    before = write(path, 1.25)
    with pytest.raises(RunError, match=r"exists already; resume that run with `resume` or choose another folder"):
        Journal.create(path, {})
    assert path.read_bytes() == before


def test_a_missing_journal_is_no_run(path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no journal\.jsonl"):
        Journal.open(path)
    with pytest.raises(RunError, match="cannot be written"):
        Journal.create(path.parent / "nowhere" / "journal.jsonl", {})


def test_a_journal_that_is_a_link_is_neither_read_nor_written(path: Path) -> None:
    other = path.with_name("other.jsonl")
    before = write(other, 1.25)
    path.symlink_to(other)
    with pytest.raises(RunError, match=r"journal\.jsonl must be a file of its run, and is a symbolic link"):
        Journal.open(path)
    with pytest.raises(RunError, match="exists already"):
        Journal.create(path, {})
    assert other.read_bytes() == before
    path.unlink()
    path.symlink_to(path.with_name("absent"))
    with pytest.raises(RunError, match="exists already"):
        Journal.create(path, {})
    assert not path.with_name("absent").exists()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system can only follow links")
def test_a_journal_that_becomes_a_link_at_the_last_moment_is_not_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = path.with_name("other.jsonl")
    write(other, 1.25)
    path.symlink_to(other)
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    with pytest.raises(RunError, match=r"journal\.jsonl cannot be opened: Too many levels of symbolic links"):
        Journal.open(path)


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_leaves_the_journal_whole(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    real_write, calls = os.write, 0

    def half_then_full(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data[:10])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal.create(path, {}) as journal:
        journal.append("k", 0, 1)
        before = path.read_bytes()
        monkeypatch.setattr(os, step, half_then_full if step == "write" else full)
        with pytest.raises(RunError, match="No space left on device; free some space"):
            journal.append("k", 1, 2)
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert journal.lookup("k", 1) is None
        journal.append("k", 1, 3)
    with Journal.open(path) as journal:
        assert [record.value for record in journal.records("k")] == [1, 3]


def test_a_disk_full_from_the_start_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match="No space left"):
        Journal.create(path, {})
    assert not path.exists()


def test_a_record_is_synced_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync
    with Journal.create(path, {}) as journal:
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(path.read_bytes()), real(fd)))
        journal.append("k", 0, 1)
        monkeypatch.undo()
    assert synced == [path.read_bytes()]
