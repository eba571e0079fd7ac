"""Hosts: files, processes and commands on another machine, and what goes wrong on the way there."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoprune.benchmark_command import FILES
from autoprune.choices import RUNTIMES
from autoprune.errors import DeviceError
from autoprune.listener import SilentListener, hearing
from autoprune.runtimes.hosts import BoardLostError, BoardWatch, LocalHost, SshHost, connection, ssh
from autoprune.runtimes.hosts.connection import refused
from autoprune.runtimes.process import WorkerError, WorkerProcess
from autoprune.runtimes.subprocess_backend import EngineSpec
from tests.helpers.board import FakeBoard, answer, fake_board
from tests.helpers.processes import ended, wait_for

ENGINE = """
import os, signal, time

class Engine:
    def add(self, a, b): return a + b
    def load(self, path, shape): return float(path)
    def run(self, network): return network
    def read(self, path): return open(path).read()
    def sleep(self, seconds): time.sleep(seconds)
    def die(self): os.kill(os.getpid(), signal.SIGKILL)
"""
AGENT = "autoprune/runtimes/hosts/agent.py"
CHILDREN = "autoprune.runtimes.hosts.children"


class Heard(SilentListener):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    listener = Heard()
    with hearing(listener):
        yield listener.warnings


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBoard]:
    monkeypatch.setattr(ssh, "LOCK_PATIENCE", 0.3)
    with fake_board(tmp_path / "board", monkeypatch) as made:
        yield made


@pytest.fixture
def host(board: FakeBoard) -> Iterator[SshHost]:
    made = SshHost(board.url)
    yield made
    made.close()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "engine.py"
    path.write_text(ENGINE)
    return path


def files(board: FakeBoard) -> list[str]:
    # os.walk, unlike rglob, passes over folders that the board removes meanwhile.
    found = sorted(name for _, _, names in os.walk(board.temporary) for name in names)
    return [name for name in found if name != "autoprune.lock"]


@pytest.mark.parametrize(
    "pattern",
    [
        AGENT,
        f"{CHILDREN.replace('.', '/')}.py",
        "autoprune/runtimes/worker.py",
        "autoprune/runtimes/energy_counter.py",
        "autoprune/runtimes/engines/*.py",
    ],
    ids=["agent", "children", "worker", "energy", "engines"],
)
def test_boards_need_python_3_8_only(pattern: str, root: Path) -> None:
    elsewhere = {spec.name for spec in RUNTIMES if not spec.on_boards}
    for path in (path for path in root.glob(pattern) if path.stem not in elsewhere):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body) or (
            path.name == "__init__.py"
        )
        later = {"removeprefix", "removesuffix", "bit_count", "pairwise", "aclosing"}
        assert not later & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} - {CHILDREN}
        assert not any(name.startswith(("autoprune", "torch")) for name in imported)


def test_the_agent_runs_without_autoprune(tmp_path: Path) -> None:
    request = json.dumps({"call": "run", "arguments": {"argv": ["echo", "12.5"], "timeout": 20}})
    alone = [sys.executable, "-I", "-S", "-c", connection.agent_program()]  # sees no installed package
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(alone, cwd=tmp_path, env={"TMPDIR": str(tmp_path)}, text=True, **pipes) as agent:
        print(request, file=agent.stdin, flush=True)
        *_, answer = (agent.stdout.readline() for _ in range(3))
        agent.stdin.close()
    assert json.loads(answer)["value"] == {"code": 0, "out": "12.5\n", "err": ""}


# -- a board that works ------------------------------------------------------------------------------


def test_an_engine_runs_there_and_leaves_nothing(host: SshHost, board: FakeBoard, engine: Path, tmp_path: Path) -> None:
    worker = WorkerProcess("test", engine, {}, host=host)
    assert worker.call("add", a=1, b=2) == 3
    numbers = [worker.call("load", path=takes) for takes in ("3", "5")]
    assert worker.call("rounds", numbers=numbers, rounds=2) == [[3.0, 5.0], [3.0, 5.0]]
    with pytest.raises(WorkerError, match="TypeError"):
        worker.call("add", a=1, b="2")
    sent = tmp_path / "network.onnx"
    sent.write_text("weights")
    assert worker.call("read", path=sent) == "weights"
    assert files(board) == ["engine.py", "network.onnx", "worker.py"]
    pid = worker.pid
    worker.close()
    assert ended(pid)
    host.close()
    assert files(board) == []


def test_equal_content_is_sent_once_and_the_oldest_is_removed(
    host: SshHost, board: FakeBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    put = connection.Connection.put
    monkeypatch.setattr(
        connection.Connection, "put", lambda self, name, content: (sent.append(name), put(self, name, content))
    )
    folder = tmp_path / "model_ncnn_model"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.param").write_bytes(b"a" * 1000)
    (folder / "deep" / "b.bin").write_bytes(os.urandom(300_000))
    there = Path(host.put(folder))
    assert there.name == folder.name
    assert (there / "deep" / "b.bin").read_bytes() == (folder / "deep" / "b.bin").read_bytes()
    assert Path(host.put(folder)) == there
    assert len(sent) == 2
    monkeypatch.setattr(ssh, "_KEPT_BYTES", 1000)
    monkeypatch.setattr(ssh, "_KEPT_FILES", 1)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"b" * 900)
    assert Path(host.put(other)).read_bytes() == b"b" * 900
    assert not there.exists()


def test_the_files_of_one_command_stay_together_however_large(
    host: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_KEPT_BYTES", 100)
    sent = []
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode() * 20)
        sent.append(Path(host.put(tmp_path / name)))
    assert all(file.exists() for file in sent)


def test_a_command_is_run_and_killed_with_all_that_it_started(host: SshHost) -> None:
    for machine in (host, LocalHost()):
        done = machine.run(["sh", "-c", "echo 12.5; echo 'hm; $HOME' >&2; exit 3"], timeout=20)
        assert (done.code, done.out, done.err) == (3, "12.5\n", "hm; $HOME\n")
        late = machine.run(["sh", "-c", "sleep 77 & echo $!; wait"], timeout=0.5)
        assert late.code is None
        wait_for(lambda pid=int(late.out): ended(pid))
        with pytest.raises(DeviceError, match=r"no-such-bench must start on .*, and does not .*No such file"):
            machine.run(["no-such-bench", "1"], timeout=5)


def test_what_login_scripts_print_is_skipped(host: SshHost, board: FakeBoard) -> None:
    board.program.write_text(board.program.read_text().replace("for last", "echo Welcome; printf Hi; for last"))
    assert host.description["python"] == ".".join(map(str, sys.version_info[:3]))
    assert host.round_trip() > 0


def test_the_fingerprint_is_the_boards_not_its_address(host: SshHost) -> None:
    values = host.fingerprint(["numpy", "no-such-package"])
    assert {"board", "cpu", "cores", "governor", "kernel", "machine", "numpy"} == set(values)


def test_a_board_tells_how_busy_it_is(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = host.watch()
    time.sleep(0.2)
    assert 0 <= watch.busy() <= len(watch.cores)
    assert watch.remark() is None or "throttles" in str(watch.remark())


def test_a_command_is_not_counted_as_load_of_others(host: SshHost) -> None:
    before = host.state()["own"]
    host.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], timeout=20)
    assert host.state()["own"] - before >= 0.25


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([(1500, False), (1480, False)], None),
        ([(1500, False), (900, False)], "throttles at 83 °C: 900 of 1500 MHz"),
        ([(1500, False), (1500, True)], "throttles at 83 °C: 1500 of 1500 MHz"),
        ([(None, None), (None, True)], "throttles at 83 °C; cool"),
    ],
)
def test_throttling_is_remarked(states: list[tuple[int | None, bool | None]], said: str | None) -> None:
    answers = iter(
        {
            "seconds": float(second),
            "idle": 0.0,
            "own": 0.0,
            "cores": 4,
            "celsius": 83.0,
            "megahertz": None if speed is None else [speed, 1500],
            "throttled": throttled,
        }
        for second, (speed, throttled) in enumerate(states)
    )
    told: list[str] = []
    watch = BoardWatch(lambda: next(answers), told.append)
    assert watch.busy() == 4
    assert told == ([] if said is None else [watch.remark()])
    assert (watch.remark() is None) if said is None else (said in str(watch.remark()))


# -- two searches ------------------------------------------------------------------------------------


def test_one_search_at_a_time_has_the_board(
    host: SshHost, board: FakeBoard, engine: Path, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = WorkerProcess("test", engine, {}, host=host), SshHost(board.url)
    try:
        assert "since" in other.holder()
        with pytest.raises(
            DeviceError, match=r"One search at a time measures on ssh://.*, and another one has it \(.*@"
        ):
            WorkerProcess("test", engine, {}, host=other)
        assert len(heard) == 1
        assert "Another search measures on" in heard[0]
        worker.close()
        monkeypatch.setattr(ssh, "LOCK_PATIENCE", 20.0)
        assert WorkerProcess("test", engine, {}, host=other).call("add", a=1, b=1) == 2
    finally:
        other.close()


# -- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "has changed"),
        ("No ED25519 host key is known for cam1.\nHost key verification failed.", "compare the fingerprint"),
        ("pi@cam1: Permission denied (publickey,password).", "ssh-copy-id ssh://pi@cam1`"),
        ("autoprune: no python3", "install Python 3.8"),
        ("autoprune: python 3.6", "too old, 3.6, and 3.8"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ssh: connect to host cam1 port 22: Connection refused", "not (ssh: connect to host cam1 port 22: Conn"),
        ("", "it does not answer"),
    ],
)
def test_a_refused_connection_is_said_in_one_sentence(said: str, told: str, board: FakeBoard) -> None:
    assert told in str(refused("ssh://pi@cam1", said))
    answer(board.program, f"cat >/dev/null <<'END'\nEND\ncat >&2 <<'END'\n{said}\nEND\nexit 255")
    with pytest.raises(DeviceError) as raised:
        SshHost("ssh://pi@cam1").round_trip()
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_the_client_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PROGRAM", "no-such-ssh")
    with pytest.raises(DeviceError, match="needs the OpenSSH client, and `no-such-ssh` does not start"):
        SshHost("ssh://cam1").round_trip()


def test_a_missing_package_is_told_with_its_command(host: SshHost, tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text("import made_up_package.deep")
    spec = EngineSpec("The runtime gone", tmp_path / "gone.py", ("made_up_package",), "gone")
    with pytest.raises(DeviceError, match=r"needs the package made-up-package on .*pip install made-up-p"):
        spec.start(host)


def test_a_file_that_does_not_fit_is_told(host: SshHost, board: FakeBoard, tmp_path: Path) -> None:
    board.program.write_text(board.program.read_text().replace("for last", "ulimit -f 200; for last"))
    (tmp_path / "large.onnx").write_bytes(b"x" * 1_000_000)
    with pytest.raises(DeviceError, match=r"A file of 1.0 MB must fit on ssh://.*File too large"):
        host.put(tmp_path / "large.onnx")
    assert host.round_trip() > 0, "it goes on"
    assert files(board) == []


def test_a_killed_worker_is_a_loss_that_may_be_measured_again(host: SshHost, board: FakeBoard, engine: Path) -> None:
    worker = WorkerProcess("test", engine, {}, host=host)
    with pytest.raises(BoardLostError, match=r"process of test on ssh://.* ended during the run \(signal SIGKILL"):
        worker.call("die")
    worker.close()
    other = SshHost(board.url)
    assert other.holder(), "the lock is kept until it is started again"
    other.close()
    assert WorkerProcess("test", engine, {}, host=host).call("add", a=2, b=2) == 4


def test_a_request_that_fails_there_is_told_in_one_sentence(host: SshHost, board: FakeBoard, engine: Path) -> None:
    lock = board.temporary / "autoprune.lock"
    lock.mkdir()
    with pytest.raises(DeviceError, match=r"The board ssh://.* must answer requests, and fails at 'lock': .*directory"):
        WorkerProcess("test", engine, {}, host=host)
    lock.rmdir()
    assert WorkerProcess("test", engine, {}, host=host).call("add", a=2, b=2) == 4


def test_a_hung_engine_is_killed_there(host: SshHost, engine: Path) -> None:
    worker = WorkerProcess("test", engine, {}, host=host)
    worker._timeout = 0.2
    with pytest.raises(DeviceError, match=r"must answer within 0.2 s and did not") as raised:
        worker.call("sleep", seconds=60)
    assert not isinstance(raised.value, BoardLostError)
    assert ended(worker.pid)


def test_a_lost_connection_ends_what_ran_there_and_is_opened_again(
    host: SshHost, board: FakeBoard, engine: Path, heard: list[str]
) -> None:
    worker = WorkerProcess("test", engine, {}, host=host)
    assert host._connection is not None
    host._connection._process.terminate()
    for _ in range(2):  # the second call is told at once, too
        with pytest.raises(BoardLostError, match=r"The connection to ssh://.* was lost"):
            worker.call("add", a=1, b=1)
    wait_for(lambda: ended(worker.pid) and not files(board))
    assert WorkerProcess("test", engine, {}, host=host).call("add", a=1, b=1) == 2
    assert any("trying again" in warning for warning in heard)
    host._connection._process.terminate()
    host._boot = "another"
    wait_for(lambda: host._connection is not None and not host._connection.alive)
    assert host.round_trip() > 0
    assert any("has started anew" in warning for warning in heard)


def test_a_board_that_stays_away_is_given_up(
    host: SshHost, board: FakeBoard, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    host.round_trip()
    monkeypatch.setattr(ssh, "PATIENCE", 1.5)
    answer(board.program, "echo 'ssh: connect to host: No route to host' >&2; exit 255")
    assert host._connection is not None
    host._connection._process.terminate()
    wait_for(lambda: host._connection is not None and not host._connection.alive)
    with pytest.raises(DeviceError, match=r"must be reachable over SSH and is not .*No route to host"):
        host.round_trip()


def test_a_search_that_is_killed_leaves_nothing_there(root: Path, board: FakeBoard, engine: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from autoprune.runtimes.hosts import SshHost
from autoprune.runtimes.process import WorkerProcess
worker = WorkerProcess("test", Path({str(engine)!r}), {{}}, host=SshHost({board.url!r}))
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    pid = int(done.stdout)
    wait_for(lambda: ended(pid) and not files(board))


def test_a_search_that_is_killed_leaves_no_program_here(root: Path, tmp_path: Path) -> None:
    script = f"""
from autoprune.runtimes.hosts import LOCAL
LOCAL.run(["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 60"], timeout=50)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().endswith("\n"), 60.0)
    process.kill()
    process.wait()
    wait_for(lambda: ended(int((tmp_path / "pid").read_text())))


def test_an_interrupted_call_ends_the_connection(host: SshHost, board: FakeBoard, engine: Path) -> None:
    worker = WorkerProcess("test", engine, {}, host=host)
    assert host._connection is not None
    get = host._connection._lines

    class Interrupted:
        def get(self, timeout: float) -> bytes:
            raise KeyboardInterrupt

    host._connection._lines = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        worker.call("sleep", seconds=60)
    assert get is not None
    wait_for(lambda: ended(worker.pid) and not files(board))
