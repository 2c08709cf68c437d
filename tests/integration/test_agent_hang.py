"""Ranks that make no progress any more: seen, their stacks taken, the one that holds the rest up named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.progress import STOP, WatchSpec
from llmctl.wire.records import EventKind
from llmctl.wire.states import NodeState
from tests.integration.agent_host import AgentHost, hosts, until

RUN = "hang-0a1b"

# Two ranks in step over a socket pair of their own; rank 1 stops taking part at step 5.
BARRIER = """
import os, socket, sys, time
from llmctl.worker.reporting import report

rank = int(os.environ["RANK"])
address = os.path.join(os.environ["LLMCTL_RUN_DIR"], "s")

def connect():
    if rank == 0:
        server = socket.socket(socket.AF_UNIX)
        server.bind(address)
        server.listen(1)
        return server.accept()[0]
    while True:
        try:
            other = socket.socket(socket.AF_UNIX)
            other.connect(address)
            return other
        except OSError:
            time.sleep(0.05)

other = connect()

def barrier():
    other.send(b"x")
    other.recv(1)

def broken_loader():
    while True:
        time.sleep(1)

for step in range(1, 1000):
    if rank == 1 and step == 5:
        broken_loader()
    barrier()
    report(step=step, total=1000)
    time.sleep(0.02)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    yield from hosts(tmp_path)


def test_a_hang_is_found_and_its_rank_named(host: AgentHost) -> None:
    """The rank that is in no collective is named by its line; both stacks are kept; `stop` is final."""
    host.start(host.spec(RUN, BARRIER, watch=WatchSpec(hang_s=4.0, policy=STOP)))
    node = host.ended(RUN, within=120)
    assert node.state is NodeState.FAILED
    assert node.exit is not None
    assert node.exit.reason.startswith("hang: no step for")
    assert re.search(r"; rank 1 at train.py:\d+ in broken_loader$", node.exit.reason), node.exit.reason
    assert node.exit.code == ExitCode.NO_RETRY
    assert node.hang is not None
    assert [(one.rank, one.waits, one.step) for one in node.hang.ranks] == [(0, True, 4), (1, False, 4)]
    names = {file.path for file in host.files(RUN).files}
    assert {f"attempt-1/stack-{rank}.txt" for rank in (0, 1)} <= names
    stack = Path(host.run(RUN).attempt(1).stack(0)).read_text()
    assert "in barrier" in stack
    assert any(event.kind == EventKind.HANG.value for event in host.events(RUN))
    host.gone(RUN)


def test_ranks_that_go_on_after_a_pause_are_not_ended(host: AgentHost) -> None:
    """A pause beyond the bound that ends while the agent still holds back is told, and nothing is ended."""
    host.start(host.spec(RUN, BARRIER.replace("step == 5", "step < 0"), watch=WatchSpec(hang_s=2.0)))
    until(lambda: host.status(RUN).progress, what="steps")
    pids = [one.pid for one in host.events(RUN) if one.kind == EventKind.RANK_STARTED.value]
    for pid in pids:
        os.kill(pid or 0, signal.SIGSTOP)
    until(lambda: host.status(RUN).hang, what="the hang is seen")
    seen = host.status(RUN).hang
    for pid in pids:
        os.kill(pid or 0, signal.SIGCONT)
    assert {one.where for one in seen.ranks} == {"stopped by a signal"}
    before = max(one.step for one in host.status(RUN).progress)
    until(lambda: max(one.step for one in host.status(RUN).progress) > before + 5, what="more steps")
    until(lambda: host.status(RUN).hang is None, what="the hang is forgotten")
    assert host.status(RUN).state is NodeState.RUNNING


def test_a_sitecustomize_of_the_host_still_runs(host: AgentHost, tmp_path: Path) -> None:
    """Ours hides none: one further down the path is imported as if ours were not there."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = __file__\n")
    script = "import builtins, sys\nprint(builtins.theirs, sys.modules['sitecustomize'].__file__)\n"
    host.start(host.spec(RUN, "print('up')", nproc=1))
    host.ended(RUN)
    startup = Path(host.layout.agent_dir(host.hash)) / "llmctl/worker/startup"
    env = {**os.environ, "PYTHONPATH": f"{startup}:{theirs}"}
    done = subprocess.run(
        [host.python, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [str(theirs / "sitecustomize.py")] * 2
