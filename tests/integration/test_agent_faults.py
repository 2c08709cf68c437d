"""What goes wrong on a host: each fault gets a true state and a reason, and leaves no process behind."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.node import procs
from llmctl.wire.states import NodeState
from tests.integration.agent_host import AgentHost, hosts, start_text, until

RUN = "fault-0a1b"
SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(300)\n"

DAEMONIZE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("daemon.pid", "w").write(str(os.getpid()))
        {env}
        time.sleep(300)
    os._exit(0)
os.wait()
while not os.path.exists("daemon.pid") or not open("daemon.pid").read():
    time.sleep(0.01)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    yield from hosts(tmp_path)


def up(host: AgentHost, run_id: str = RUN, ranks: int = 2) -> None:
    until(lambda: all("up" in host.log(run_id, rank) for rank in range(ranks)), what="ranks are up")


def rank_pid(host: AgentHost, rank: int) -> int:
    """The real rank's pid, as its start event says it."""
    kind = "rank-started"

    def found() -> int | None:
        return next((e.pid for e in host.events(RUN) if e.kind == kind and e.rank == rank), None)

    return int(until(found))


def test_kill_9_of_the_agent_ends_everything(host: AgentHost) -> None:
    """No rank outlives a killed agent; the verdict on disk names the agent's death."""
    reply = host.start(host.spec(RUN, SLEEP))
    up(host)
    os.kill(reply.agent_pid, signal.SIGKILL)
    host.gone(RUN)
    node = host.ended(RUN)
    assert node.state is NodeState.FAILED
    assert not node.agent_alive
    assert node.exit is not None
    assert "agent died (SIGKILL)" in node.exit.reason
    assert node.exit.left == ()


def test_kill_9_of_agent_and_guard_ends_everything(host: AgentHost) -> None:
    """With nobody left to write a verdict, ranks die all the same and status concludes it from the lease."""
    reply = host.start(host.spec(RUN, SLEEP))
    up(host)
    agent = procs.stat(reply.agent_pid)
    assert agent is not None
    os.kill(agent.ppid, signal.SIGKILL)
    os.kill(reply.agent_pid, signal.SIGKILL)
    host.gone(RUN)
    node = host.status(RUN)
    assert node.state is NodeState.FAILED
    assert node.exit is not None
    assert "host rebooted" in node.exit.reason
    report = host.stop(RUN)
    assert (report.state, report.left) == (NodeState.FAILED, ())
    assert Path(host.run(RUN).attempt(1).exit).exists()


def test_kill_9_of_the_agent_reaches_what_detached(host: AgentHost) -> None:
    """A helper with a session of its own dies with a killed agent: the guard finds it."""
    reply = host.start(host.spec(RUN, DAEMONIZE.format(env="") + SLEEP, nproc=1))
    up(host, ranks=1)
    helper = int((Path(host.run(RUN).code) / "daemon.pid").read_text())
    os.kill(reply.agent_pid, signal.SIGKILL)
    assert host.ended(RUN).state is NodeState.FAILED
    assert until(lambda: not Path(f"/proc/{helper}").exists(), what="the helper gone")


def test_kill_9_of_a_rank_is_named(host: AgentHost) -> None:
    """The killed rank is the failure, with its signal; the others are ended."""
    host.start(host.spec(RUN, SLEEP))
    up(host)
    os.kill(rank_pid(host, 1), signal.SIGKILL)
    node = host.ended(RUN)
    assert node.state is NodeState.FAILED
    assert node.exit is not None
    assert node.exit.reason == "rank 1: SIGKILL"
    assert node.failure is not None
    assert (node.failure.rank, node.failure.code, node.failure.signal) == (1, 137, "SIGKILL")
    host.gone(RUN)


def test_kill_9_of_a_shim_takes_its_rank_along(host: AgentHost) -> None:
    """A rank never outlives its shim, and still gets a record."""
    host.start(host.spec(RUN, SLEEP))
    up(host)
    real = procs.stat(rank_pid(host, 0))
    assert real is not None
    os.kill(real.ppid, signal.SIGKILL)
    node = host.ended(RUN)
    assert node.exit is not None
    assert {rank.rank: rank.signal for rank in node.exit.ranks}[0] == "SIGKILL"
    assert node.state is NodeState.FAILED
    host.gone(RUN)


def test_a_rank_that_raises_is_the_first_failure(host: AgentHost) -> None:
    """The verdict names the rank that raised, with the tail of its log, not those ended because of it."""
    script = (
        "import os, time\nif os.environ['RANK'] == '1':\n    raise ValueError('bad batch')\ntime.sleep(300)\n"
    )
    host.start(host.spec(RUN, script, nproc=3))
    node = host.ended(RUN)
    assert node.exit is not None
    assert node.exit.reason == "rank 1: exit 1"
    assert node.failure_log[-1] == "ValueError: bad batch"
    codes = {rank.rank: rank.code for rank in node.exit.ranks}
    assert codes.pop(1) == 1
    assert set(codes.values()) == {143}  # rank 2 is missing where rank 1 failed before it was started
    host.gone(RUN)


def test_a_missing_script_says_so_in_its_log(host: AgentHost) -> None:
    """The interpreter's own message is the failure's log."""
    host.start(host.spec(RUN, "pass", command=("nowhere.py",)))
    node = host.ended(RUN)
    assert node.state is NodeState.FAILED
    assert "nowhere.py" in node.failure_log[-1]


def test_a_missing_interpreter_is_the_launchers_failure(host: AgentHost) -> None:
    """A python that is not there fails the node with its name."""
    host.start(host.spec(RUN, "pass", python="/no/such/python"))
    node = host.ended(RUN)
    assert node.exit is not None
    assert node.exit.reason == "launcher: exit 127: cannot start /no/such/python: No such file or directory"


def test_a_missing_tree_fails_the_node(host: AgentHost) -> None:
    """Code that was never pushed is a failed node with that reason, not a hanging one."""
    host.start(host.spec(RUN, tree="e" * 64))
    node = host.ended(RUN)
    assert node.exit is not None
    assert "no code tree" in node.exit.reason
    assert node.state is NodeState.FAILED


def test_a_helper_that_detached_is_found_and_ended(host: AgentHost) -> None:
    """A daemonized child of a rank does not outlive a run that succeeded."""
    host.start(host.spec(RUN, DAEMONIZE.format(env=""), nproc=1))
    node = host.ended(RUN)
    helper = int((Path(host.run(RUN).code) / "daemon.pid").read_text())
    assert node.state is NodeState.SUCCEEDED
    assert not Path(f"/proc/{helper}").exists()


def test_a_helper_that_hid_its_environment_is_found(host: AgentHost) -> None:
    """Also one that runs another program with an empty environment: it is the agent's orphan."""
    hide = "os.execve('/bin/sleep', ['sleep', '300'], {})"
    host.start(host.spec(RUN, DAEMONIZE.format(env=hide), nproc=1))
    host.ended(RUN)
    helper = int((Path(host.run(RUN).code) / "daemon.pid").read_text())
    assert not Path(f"/proc/{helper}").exists()


def test_a_rank_that_ignores_sigterm_is_killed(host: AgentHost) -> None:
    """When another rank has failed, one that ignores SIGTERM gets SIGKILL after the grace."""
    script = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
if os.environ["RANK"] == "0":
    raise SystemExit(7)
time.sleep(300)
"""
    host.start(host.spec(RUN, script, grace_s=0.5))
    up(host)
    (Path(host.run(RUN).code) / "go").touch()
    node = host.ended(RUN)
    assert node.exit is not None
    assert node.exit.reason == "rank 0: exit 7"
    assert {rank.rank: rank.signal for rank in node.exit.ranks} == {0: None, 1: "SIGKILL"}
    assert any(event.kind == "killed" for event in host.events(RUN))


def test_the_next_attempt_starts_right_after_a_killed_agent(host: AgentHost) -> None:
    """The dead attempt's guard and leftovers are over before new ranks start; those live on."""
    spec = host.spec(RUN, SLEEP, nproc=1)
    reply = host.start(spec)
    up(host, ranks=1)
    os.kill(reply.agent_pid, signal.SIGKILL)
    until(lambda: not host.status(RUN).agent_alive)
    host.start(dataclasses.replace(spec, attempt=2))
    until(lambda: "up" in host.log(RUN, 0, attempt=2))
    until(lambda: host.status(RUN).state is NodeState.RUNNING)
    assert Path(host.run(RUN).attempt(1).exit).exists()
    events = host.events(RUN)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_a_start_killed_in_between_leaves_no_lie(host: AgentHost) -> None:
    """A run directory with node.json but no agent is failed, never starting for ever."""
    host.start(host.spec(RUN, "pass", nproc=1))
    host.ended(RUN)
    run = host.run(RUN)
    Path(run.lease).unlink()
    Path(run.attempt(1).exit).unlink()
    assert host.status(RUN).state is NodeState.FAILED


# --- a full disk ---


@pytest.fixture
def small_host(tmp_path: Path) -> Iterator[AgentHost]:
    """A host whose workdir is a file system of 12 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=12m") != 0:
        pytest.skip(f"mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield from hosts(folder)
    finally:
        libc.umount2(str(folder).encode(), 2)


FILL = """
import os
with open("filler", "wb", buffering=0) as file:
    size = 65536
    while size:
        try:
            file.write(b"x" * size)
        except OSError:
            size //= 2
"""


def test_a_disk_filled_by_the_job_leaves_a_true_state(small_host: AgentHost) -> None:
    """The verdict, with every rank's exit, is written although the job took the last block."""
    script = FILL + "import sys, time; time.sleep(1.2); sys.exit(9)"
    small_host.start(small_host.spec(RUN, script, nproc=1, lease_s=0.2))
    node = small_host.ended(RUN)
    assert node.state is NodeState.FAILED
    assert node.exit is not None
    assert node.exit.reason == "rank 0: exit 9"


def test_a_full_disk_does_not_end_a_job(small_host: AgentHost) -> None:
    """A job that needs no disk goes on and succeeds while leases can't be written."""
    script = FILL + "import time; time.sleep(3)"
    small_host.start(small_host.spec(RUN, script, nproc=1, lease_s=0.2))
    until(lambda: _full(small_host), what="the disk is full")
    until(lambda: small_host.status(RUN).state is NodeState.RUNNING)
    assert small_host.ended(RUN).state is NodeState.SUCCEEDED


def test_a_full_disk_refuses_a_start(small_host: AgentHost) -> None:
    """Without room for the run directory's files a start is one clear error, and nothing runs."""
    spec = small_host.spec(RUN, "pass", nproc=1)
    filler = Path(small_host.layout.workdir).parent / "filler"
    _fill(filler)
    error = small_host.fails("start", stdin=start_text(spec))
    assert "No space left" in error["message"]
    assert not small_host.processes(RUN)


def test_a_full_disk_fails_the_copy_of_the_code(small_host: AgentHost) -> None:
    """Code that does not fit ends the node as failed with that reason."""
    spec = small_host.spec(RUN, "pass", nproc=1)
    (Path(small_host.layout.tree(spec.tree or "")) / "big").write_bytes(b"x" * 4_500_000)
    small_host.start(spec)
    node = small_host.ended(RUN)
    assert node.exit is not None
    assert node.exit.reason.startswith("code: ")
    assert "No space left" in node.exit.reason
    assert not Path(small_host.run(RUN).code).exists()


def test_stop_works_on_a_full_disk(small_host: AgentHost) -> None:
    """Where stop.json can't be written, the signal alone stops the run."""
    small_host.start(small_host.spec(RUN, FILL + SLEEP.replace("print", "#"), nproc=1))
    until(lambda: _full(small_host), what="the disk is full")
    report = small_host.stop(RUN, grace_s=2)
    assert (report.state, report.left) == (NodeState.CANCELLED, ())
    small_host.gone(RUN)


def _full(host: AgentHost) -> bool:
    found = os.statvfs(host.layout.workdir)
    return found.f_bavail == 0


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return
