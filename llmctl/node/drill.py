"""`drill`: break a part of one run on this host on purpose. Nothing but processes of that run is touched:
each is named by the run's own records and checked by what its environment says."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Optional

from llmctl.errors import ConfigError, NotFoundError, ProvisionError
from llmctl.node import atomic, lease, procs, rankfiles, rundir
from llmctl.node.group import Group, recall_cgroup, sweep
from llmctl.node.hang import progress_of
from llmctl.wire import environment as names
from llmctl.wire.codec import dumps, loads
from llmctl.wire.drill import FREEZE, KILL_HOST, KILL_RANK, DrillReply, DrillRequest

_LOOK_S = 0.02
_RECORD = ".drill.json"


def drill(workdir: str, run_id: str, request: DrillRequest) -> DrillReply:
    """Wait until the run has come to the step, then break it.

    Raises:
        NotFoundError: no such run here. IntegrityError: its node.json is damaged.
        ConfigError: an unknown fault, or a rank that is not of this host.
        ProvisionError: a rank has ended before, or after SIGKILL something of the run is still there.
    """
    run = rundir.find(rundir.host_layout(workdir), run_id)
    record = os.path.join(run.attempt(request.attempt).root, _RECORD)
    deadline = time.monotonic() + request.wait_s
    while True:
        done = atomic.read(record)
        if done is not None:
            return loads(DrillReply, done)
        view = rundir.look(run)
        if view is None:
            raise NotFoundError(f"nothing was started in {run.root}")
        reply = DrillReply(state=view.state, attempt=view.spec.attempt, step=_step(view))
        if view.state.ended or reply.attempt != request.attempt:
            return reply
        if reply.step is not None and reply.step >= request.at_step:
            return _struck(view, request, reply, record)
        if time.monotonic() >= deadline:
            return reply
        time.sleep(_LOOK_S)


def _struck(view: rundir.View, request: DrillRequest, reply: DrillReply, record: str) -> DrillReply:
    """Written down first: an asker whose line broke must not break the next attempt, too."""
    doomed = _doomed(view, request)
    reply = replace(reply, hit=tuple(procs.describe(one) for one in doomed))
    atomic.write(record, dumps(reply))
    number = signal.SIGSTOP if request.fault == FREEZE else signal.SIGKILL
    for one in doomed:
        procs.send(one.ref, number)
    if request.fault == KILL_HOST:
        _sweep(view)
    return reply


def _own_ranks(view: rundir.View) -> range:
    launch = view.spec.launch
    return range(launch.first_rank, launch.first_rank + launch.nproc)


def _step(view: rundir.View) -> Optional[int]:
    """The last step that any rank here has finished."""
    return max((one.step for one in progress_of(view.attempt, _own_ranks(view))), default=None)


def _doomed(view: rundir.View, request: DrillRequest) -> tuple[procs.ProcStat, ...]:
    """Of a host the guard first, then the agent: neither may still write down how it ended."""
    if request.fault == KILL_HOST:
        return (*_agent_and_guard(view), *view.group.members().values())
    if request.fault not in (KILL_RANK, FREEZE):
        raise ConfigError(f"unknown fault {request.fault!r}")
    return tuple(_rank(view, rank) for rank in request.ranks or _own_ranks(view))


def _rank(view: rundir.View, rank: int) -> procs.ProcStat:
    """The rank itself, not its shim. Its record may be old: what its environment says decides."""
    if rank not in _own_ranks(view):
        raise ConfigError(f"rank {rank} is not on this host")
    start = rankfiles.read_start(view.attempt, rank)
    seen = procs.stat(start.pid) if start else None
    marks = (f"{names.RUN_DIR}={view.run.root}".encode(), f"RANK={rank}".encode())
    if seen is None or not procs.with_environment(marks, (seen.ref.pid,)):
        raise ProvisionError(f"rank {rank} has ended by itself")
    return seen


def _sweep(view: rundir.View) -> None:
    """What was just being started."""
    rest = Group(run_id=view.spec.run_id, run_dir=view.run.root, cgroup=recall_cgroup(view.attempt))
    left = sweep(rest, grace_s=0.0, tick=time.sleep).left
    if left:
        raise ProvisionError(f"still there after SIGKILL: {', '.join(left)}")


def _agent_and_guard(view: rundir.View) -> tuple[procs.ProcStat, ...]:
    """Outermost first."""
    if view.lease is None or not view.agent_alive:
        return ()
    agent = procs.stat(lease.holder(view.lease).pid)
    if agent is None:
        return ()
    guard = procs.stat(agent.ppid) if rundir.guarded(view.attempt) else None
    return (agent,) if guard is None or guard.ref.pid == 1 else (guard, agent)
