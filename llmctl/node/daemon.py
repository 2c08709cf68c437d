"""From the SSH command to a process of its own: fork, new session, nothing inherited.

    start ── guard ── agent ── launcher ── ranks
The guard does nothing but wait: when the agent is killed, it ends what the agent can't end any more and
writes the verdict, so that even `kill -9` of an agent leaves no process and a true state.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from llmctl.errors import DeadlineError, ProvisionError
from llmctl.node import agent, cgroup, kernel, procs, rankfiles, rundir
from llmctl.node.atomic import Reserved
from llmctl.node.group import Group, recall_cgroup, sweep
from llmctl.node.journal import Journal
from llmctl.wire.codec import dumps
from llmctl.wire.records import EventKind, NodeExit
from llmctl.wire.specs import NodeSpec
from llmctl.wire.states import NodeState

READY_DEADLINE_S = 30.0
_EXIT_BYTES = 4096
_RANK_BYTES = 300


def launch(spec: NodeSpec, secrets: Mapping[str, str], host_env: Mapping[str, str]) -> int:
    """Start guard and agent; returns the agent's pid once it holds its lease.

    Raises:
        ProvisionError: the agent could not take its lease.
        DeadlineError: it said nothing in time.
    """
    from_agent, to_start = os.pipe()
    sys.stdout.flush()
    guard = os.fork()
    if guard == 0:
        os.close(from_agent)
        _as_process(lambda: _guard(spec, secrets, host_env, to_start))
    os.close(to_start)
    try:
        return _hear(from_agent)
    finally:
        os.close(from_agent)


def _hear(fd: int) -> int:
    """One JSON line from the agent: its pid, or why it can't go on."""
    deadline = time.monotonic() + READY_DEADLINE_S
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise DeadlineError("the agent did not take its lease in time")
        block = os.read(fd, 4096)
        if not block:
            raise ProvisionError("the agent ended at once", hint="see agent.log in the run directory")
        text += block
    said = json.loads(text)
    if "error" in said:
        raise ProvisionError(said["error"])
    return int(said["pid"])


def _as_process(body: Callable[[], int]) -> NoReturn:
    """Run `body` as the whole life of a forked process: its caller's frames must never go on here."""
    code = 1
    try:
        code = body()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def _guard(spec: NodeSpec, secrets: Mapping[str, str], host_env: Mapping[str, str], to_start: int) -> int:
    run = rundir.host_layout(spec.workdir).run(spec.run_id)
    attempt = run.attempt(spec.attempt)
    os.setsid()
    os.chdir("/")
    kernel.close_inherited(keep=(to_start,))
    kernel.to_null_and(attempt.agent_log)
    kernel.adopt_orphans()
    signal.pthread_sigmask(signal.SIG_BLOCK, agent.WATCHED)
    verdict = Reserved(attempt.exit, _EXIT_BYTES + _RANK_BYTES * spec.launch.nproc)
    lock = rundir.claim_guard(attempt)
    pid = os.fork()
    if pid == 0:
        os.close(lock)
        _as_process(lambda: agent.Agent(spec, secrets, host_env, to_start, verdict).run())
    os.close(to_start)
    _, status = os.waitpid(pid, 0)
    if not os.path.exists(attempt.exit):
        _agent_died(spec, status, verdict)
    verdict.drop()
    return 0


def _agent_died(spec: NodeSpec, status: int, verdict: Reserved) -> None:
    """End what is left and say so. A stop that was under way has got what it asked for."""
    run = rundir.host_layout(spec.workdir).run(spec.run_id)
    attempt = run.attempt(spec.attempt)
    stop = rundir.read_stop(run)
    folder = recall_cgroup(attempt)
    group = Group(run_id=spec.run_id, run_dir=run.root, roots=(os.getpid(),), cgroup=folder)
    swept = sweep(group, grace_s=0.0, tick=_reap_for)
    cgroup.remove(folder)
    code, name = kernel.exit_code(status)
    reason = stop.reason if stop else f"the agent died ({name or f'exit {code}'})"
    state = NodeState.CANCELLED if stop else NodeState.FAILED
    journal = Journal(run, spec.attempt)
    journal.add(EventKind.KILLED, detail=f"{reason}; {swept.killed} processes killed by its guard")
    journal.add(EventKind.ENDED, detail=f"{state.value}: {reason}")
    ended = NodeExit(
        state=state,
        code=code,
        reason=reason,
        ended_at=time.time(),
        ranks=rankfiles.exits(attempt),
        left=swept.left,
        stop_requested_at=rundir.stop_written_at(run),
    )
    verdict.commit(dumps(ended), durable=True)


def _reap_for(seconds: float) -> None:
    """Wait, and take in children that have ended."""
    signal.sigtimedwait((signal.SIGCHLD,), seconds)
    while procs.reap_one() is not None:
        continue
