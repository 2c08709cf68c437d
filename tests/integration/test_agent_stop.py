"""Stop: ends this run and no other, proves that nothing is left, and says truly what it did."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.node import procs
from llmctl.wire import codec
from llmctl.wire.records import EventKind, StopRequest
from llmctl.wire.states import NodeState
from tests.integration.agent_host import AgentHost, free_port, hosts, until

RUN = "stop-0a1b"
OTHER = "other-0a1b"
SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(300)\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    yield from hosts(tmp_path)


def up(host: AgentHost, run_id: str = RUN, ranks: int = 2) -> None:
    until(lambda: all("up" in host.log(run_id, rank) for rank in range(ranks)), what="ranks are up")


def test_stop_ends_every_rank_and_says_so(host: AgentHost) -> None:
    """A stopped run is cancelled with the given reason; SIGTERM reached each rank exactly once."""
    script = """
import signal, sys, time
def on_term(number, frame):
    print("term", flush=True)
    time.sleep(0.3)
    sys.exit(0)
signal.signal(signal.SIGTERM, on_term)
print("up", flush=True)
time.sleep(300)
"""
    host.start(host.spec(RUN, script))
    up(host)
    report = host.stop(RUN, reason="enough")
    assert report.state is NodeState.CANCELLED
    assert report.left == ()
    assert report.ended >= 4  # two ranks and their shims
    assert [host.log(RUN, rank) for rank in (0, 1)] == ["up\nterm\n"] * 2
    node = host.status(RUN)
    assert node.exit is not None
    assert node.exit.reason == "enough"
    assert node.exit.stop_requested_at is not None
    assert node.failure is None
    assert not host.processes(RUN)


def test_stop_of_one_run_leaves_the_other_alone(host: AgentHost) -> None:
    """Two runs side by side: the other one's ranks and state are untouched."""
    for run_id in (RUN, OTHER):
        host.start(host.spec(run_id, SLEEP))
        up(host, run_id)
    others = host.processes(OTHER)
    assert host.stop(RUN).state is NodeState.CANCELLED
    assert host.processes(OTHER) == others
    until(lambda: host.status(OTHER).state is NodeState.RUNNING)


def test_two_nodes_of_one_run_on_one_machine_are_apart(tmp_path: Path) -> None:
    """The same run id in two workdirs is two nodes: stopping one leaves the other's processes."""
    pair = [AgentHost(tmp_path / name) for name in "ab"]
    try:
        for one in pair:
            one.start(one.spec(RUN, SLEEP, nproc=1))
            up(one, ranks=1)
        assert pair[0].stop(RUN).left == ()
        until(lambda: pair[1].status(RUN).state is NodeState.RUNNING)
        assert pair[1].processes(RUN)
    finally:
        for one in pair:
            one.close()


def test_stop_kills_what_ignores_sigterm(host: AgentHost) -> None:
    """After the grace of the request, not that of the spec, SIGKILL ends the rest."""
    script = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
    host.start(host.spec(RUN, script, grace_s=200.0))
    up(host)
    report = host.stop(RUN, grace_s=0.3)
    assert (report.state, report.left) == (NodeState.CANCELLED, ())
    assert {rank.signal for rank in host.status(RUN).exit.ranks} == {"SIGKILL"}  # type: ignore[union-attr]


def test_stop_of_an_ended_run_is_fine(host: AgentHost) -> None:
    """A run that has succeeded stays so, and the report is clean; asking twice is no error either."""
    host.start(host.spec(RUN, "print(1)", nproc=1))
    host.ended(RUN)
    for _ in range(2):
        report = host.stop(RUN)
        assert (report.state, report.ended, report.left) == (NodeState.SUCCEEDED, 0, ())


def test_stop_during_the_copy_of_the_code(host: AgentHost) -> None:
    """A stop that comes before the launcher ends the node as cancelled; no half copy stays."""
    spec = host.spec(RUN, SLEEP)
    os.mkfifo(Path(host.layout.tree(spec.tree or "")) / "endless")  # Python's copy waits at it for ever
    fake = Path(host.layout.workdir) / "bin"
    fake.mkdir()
    (fake / "cp").write_text("#!/bin/sh\nsleep 300\n")
    (fake / "cp").chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{fake}:{path}"
    try:
        host.start(spec)
    finally:
        os.environ["PATH"] = path
    assert host.status(RUN).state is NodeState.STARTING
    report = host.stop(RUN)
    assert (report.state, report.left) == (NodeState.CANCELLED, ())
    assert sorted(p.name for p in Path(host.run(RUN).root).glob("code*")) == []
    assert not any(event.kind == EventKind.LAUNCHER_STARTED.value for event in host.events(RUN))


def test_start_and_stop_at_once_never_leave_a_run(host: AgentHost) -> None:
    """A stop sent while start is under way either finds nothing yet or ends what was started."""
    spec = host.spec(RUN, SLEEP)
    starter = threading.Thread(target=host.start, args=(spec,))
    starter.start()
    stops = []
    while starter.is_alive():
        stops.append(_stop(host))
    starter.join()
    stops.append(_stop(host))
    assert {done.returncode for done in stops} <= {0, 3}
    assert stops[-1].returncode == 0
    assert host.status(RUN).state is NodeState.CANCELLED
    assert not host.processes(RUN)


def test_sigterm_to_the_agent_is_a_preemption(host: AgentHost) -> None:
    """A host that goes down: the agent ends its ranks, and nobody has cancelled the run."""
    reply = host.start(host.spec(RUN, SLEEP))
    up(host)
    os.kill(reply.agent_pid, signal.SIGTERM)
    node = host.ended(RUN)
    assert node.state is NodeState.PREEMPTED
    assert node.exit is not None
    assert node.exit.reason == "agent got SIGTERM"
    host.gone(RUN)


def test_stop_gets_past_a_frozen_agent(host: AgentHost) -> None:
    """An agent that can't answer is killed, its guard ends the ranks, and the run counts as stopped."""
    reply = host.start(host.spec(RUN, SLEEP))
    up(host)
    os.kill(reply.agent_pid, signal.SIGSTOP)
    report = host.stop(RUN, grace_s=0)
    assert (report.state, report.left) == (NodeState.CANCELLED, ())
    assert not host.processes(RUN)


def test_a_port_that_outlives_the_run_is_reported(host: AgentHost) -> None:
    """A listening socket passed to a process outside of the run is named in the report."""
    port = free_port()
    script = f"""
import array, os, socket, time
server = socket.create_server(("127.0.0.1", {port}))
keeper = socket.socket(socket.AF_UNIX)
keeper.connect(os.environ["KEEPER"])
keeper.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [server.fileno()]))])
print("up", flush=True)
time.sleep(300)
"""
    address = str(Path(host.layout.workdir) / "keeper")
    with _Keeper(address) as keeper:
        host.start(host.spec(RUN, script, nproc=1, env={"KEEPER": address}))
        keeper.receive()
        up(host, ranks=1)
        assert host.stop(RUN).left == (f"tcp port {port}",)


def test_stop_without_agent_and_guard_ends_what_is_left(host: AgentHost) -> None:
    """A rank's detached helper that outlived both is found by its environment and ended."""
    script = "import subprocess, sys\nsubprocess.Popen(['setsid', 'sleep', '300'])\n" + SLEEP
    reply = host.start(host.spec(RUN, script, nproc=1))
    up(host, ranks=1)
    agent = procs.stat(reply.agent_pid)
    assert agent is not None
    os.kill(agent.ppid, signal.SIGKILL)
    os.kill(reply.agent_pid, signal.SIGKILL)
    until(lambda: len(host.processes(RUN)) == 1, what="only the helper is left")
    node = host.status(RUN)
    assert node.exit is not None
    assert len(node.exit.left) == 1
    report = host.stop(RUN, grace_s=2)
    assert (report.state, report.ended, report.left) == (NodeState.FAILED, 1, ())


def _stop(host: AgentHost) -> subprocess.CompletedProcess[bytes]:
    text = codec.dumps(StopRequest(grace_s=1.0)).encode()
    return host.call("stop", RUN, "--workdir", host.layout.workdir, stdin=text)


class _Keeper:
    """Takes a descriptor over a UNIX socket and keeps it open."""

    def __init__(self, address: str) -> None:
        import socket

        self._socket = socket
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(address)
        self._server.listen(1)
        self._kept: list[int] = []

    def receive(self) -> None:
        self._server.settimeout(30)
        connection, _ = self._server.accept()
        with connection:
            _, descriptors, _, _ = self._socket.recv_fds(connection, 1, 1)
        self._kept += descriptors

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        for fd in self._kept:
            os.close(fd)
