"""The agent with the real torchrun over gloo: what the direct launcher's tests can't show."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.wire.specs import NodeSpec
from llmctl.wire.states import NodeState
from tests.integration.agent_host import AgentHost, free_port, hosts, start_text, until

pytestmark = pytest.mark.torch

RUN = "torch-0a1b"

ALL_REDUCE = """
import datetime, os, torch, torch.distributed as dist
timeout = datetime.timedelta(seconds=float(os.environ["LLMCTL_PG_TIMEOUT_S"]))
dist.init_process_group("gloo", timeout=timeout)
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
print("sum", int(total), flush=True)
dist.destroy_process_group()
"""
SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(300)\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    yield from hosts(tmp_path)


def up(host: AgentHost, ranks: tuple[int, ...] = (0, 1)) -> None:
    until(lambda: all("up" in host.log(RUN, rank) for rank in ranks), within=90, what="ranks are up")


def test_two_nodes_all_reduce(tmp_path: Path) -> None:
    """Two agents with torchrun form one world by static rendezvous and both say succeeded."""
    port = free_port()
    pair = [AgentHost(tmp_path / name) for name in "ab"]
    try:
        for node_rank, one in enumerate(pair):
            spec = one.spec(
                RUN,
                ALL_REDUCE,
                launcher="torchrun",
                nnodes=2,
                node_rank=node_rank,
                nproc=1,
                world_size=2,
                first_rank=node_rank,
                master_port=port,
                interface="lo",
            )
            one.start(spec)
        for rank, one in enumerate(pair):
            assert one.ended(RUN, within=120).state is NodeState.SUCCEEDED, one.said(RUN)
            assert one.log(RUN, rank) == "sum 3\n"
    finally:
        for one in pair:
            one.close()


@pytest.mark.parametrize("hosts_file", ["127.0.1.1 odd-name\n", ""], ids=["127.0.1.1", "unresolvable"])
def test_a_host_that_cannot_resolve_itself(host: AgentHost, hosts_file: str) -> None:
    """torchrun starts and ends at once where the host's own name is 127.0.1.1 or unknown."""
    spec = host.spec(RUN, ALL_REDUCE, launcher="torchrun", interface="lo")
    host.specs.append(spec)
    done = _start_in_namespace(host, spec, hosts_file)
    assert done.returncode == 0, done.stderr.decode()
    assert host.ended(RUN, within=120).state is NodeState.SUCCEEDED, host.said(RUN)
    assert host.log(RUN, 1) == "sum 3\n"


def test_direct_ranks_form_the_same_world(host: AgentHost) -> None:
    """The direct launcher's environment is enough for init_process_group."""
    host.start(host.spec(RUN, ALL_REDUCE))
    assert host.ended(RUN, within=120).state is NodeState.SUCCEEDED, host.said(RUN)
    assert host.log(RUN, 0) == "sum 3\n"


def test_a_rank_that_raises_under_torchrun(host: AgentHost) -> None:
    """The reason is the rank's exit, not torchrun's; the others, in sessions of their own, are ended."""
    script = "import os, time\nif os.environ['RANK'] == '1':\n    raise ValueError('bad')\ntime.sleep(300)\n"
    host.start(host.spec(RUN, script, launcher="torchrun"))
    node = host.ended(RUN, within=120)
    assert node.exit is not None
    assert node.exit.reason == "rank 1: exit 1"
    assert {rank.rank: rank.signal for rank in node.exit.ranks} == {0: "SIGTERM", 1: None}
    assert node.failure_log[-1] == "ValueError: bad"
    assert not host.processes(RUN)


def test_kill_9_of_the_agent_under_torchrun(host: AgentHost) -> None:
    """Launcher, shims and ranks all die with a killed agent."""
    reply = host.start(host.spec(RUN, SLEEP, launcher="torchrun"))
    up(host)
    os.kill(reply.agent_pid, signal.SIGKILL)
    host.gone(RUN)
    assert host.ended(RUN).state is NodeState.FAILED


def test_stop_under_torchrun_sends_sigterm_once(host: AgentHost) -> None:
    """A checkpointing handler is called once, finishes, and the node is cancelled with nothing left."""
    script = """
import signal, sys, time
def on_term(number, frame):
    print("term", flush=True)
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, on_term)
print("up", flush=True)
time.sleep(300)
"""
    host.start(host.spec(RUN, script, launcher="torchrun", grace_s=20.0))
    up(host)
    report = host.stop(RUN, grace_s=20.0)
    assert (report.state, report.left) == (NodeState.CANCELLED, ())
    assert [host.log(RUN, rank) for rank in (0, 1)] == ["up\nterm\nsaved\n"] * 2


def test_no_torchrun_is_a_clear_reason(host: AgentHost) -> None:
    """A python without torch fails the node with the launcher's last words."""
    bare = Path(host.layout.workdir) / "bare"
    subprocess.run([host.python, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=60)
    host.start(host.spec(RUN, "pass", launcher="torchrun", python=str(bare / "bin" / "python")))
    node = host.ended(RUN)
    assert node.exit is not None
    assert node.exit.reason.startswith("launcher: exit 1: ")
    assert "torch" in node.exit.reason


def _start_in_namespace(
    host: AgentHost, spec: NodeSpec, hosts_file: str
) -> subprocess.CompletedProcess[bytes]:
    """`start` where the host is called odd-name and /etc/hosts has only these lines."""
    if os.geteuid() != 0:
        pytest.skip("a hostname of its own needs root")
    lines = Path(host.layout.workdir) / "hosts"
    lines.write_text(f"127.0.0.1 localhost\n{hosts_file}")

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        new_ns, new_uts, bind, private = 0x20000, 0x4000000, 4096, 0x44000
        ok = libc.unshare(new_ns | new_uts) == 0
        ok = ok and libc.mount(None, b"/", None, private, None) == 0
        ok = ok and libc.mount(str(lines).encode(), b"/etc/hosts", None, bind, None) == 0
        if not ok or libc.sethostname(b"odd-name", 8) != 0:
            os._exit(77)

    done = subprocess.run(
        [host.python, host.pyz, "start"],
        input=start_text(spec).encode(),
        capture_output=True,
        timeout=120,
        check=False,
        preexec_fn=enter,
    )
    if done.returncode == 77:
        pytest.skip("no namespaces here")
    return done
