"""`ps`: which runs hold this host, and processes of runs that nobody looks after any more."""

from __future__ import annotations

import os
import time
from typing import Optional

from llmctl.errors import IntegrityError
from llmctl.node import procs, rundir
from llmctl.node.group import Group, sweep
from llmctl.wire import environment as names
from llmctl.wire.agents import PsReply, PsRequest, RunOnHost
from llmctl.wire.layout import RUN_ID, HostLayout
from llmctl.wire.states import NodeState
from llmctl.wire.supervision import STALE_S

_REAP_GRACE_S = 5.0


def ps(workdir: str, request: PsRequest) -> PsReply:
    """Every run with an agent, a process or a supervisor at work; with `reap`, orphans are ended first."""
    host = rundir.host_layout(workdir)
    now = time.time()
    marked = _marked(host)
    known = {name for name in _names(host) if RUN_ID.match(name)}
    found = [_of_run(host, run_id, marked.get(run_id, set()), now) for run_id in sorted(known | set(marked))]
    held = [one for one in found if one is not None]
    return PsReply(now=now, runs=tuple(_reaped(host, one) if request.reap else one for one in held))


def occupants(host: HostLayout, but: str, *, shared_too: bool = True) -> tuple[str, ...]:
    """Other runs that hold this host now: one that goes on, or waits for its next attempt.

    `shared_too`: also those that share the host with whoever comes.
    """
    now = time.time()
    found = []
    for name in sorted(_names(host)):
        if name == but or not RUN_ID.match(name):
            continue
        one = _of_run(host, name, set(), now)
        if one is not None and (one.agent_pid is not None or one.waits) and (shared_too or not one.shared):
            found.append(name)
    return tuple(found)


def _of_run(host: HostLayout, run_id: str, pids: set[int], now: float) -> Optional[RunOnHost]:
    """None where the run holds nothing here."""
    run = host.run(run_id)
    view = _look(host, run_id)
    left = _described(pids)
    if view is None:
        return RunOnHost(run_id=run_id, processes=len(left), orphans=left) if left else None
    guarded = view.agent_alive or rundir.guarded(view.attempt)
    told = rundir.read_supervision(run)
    waits = not guarded and told is not None and now - told.heard_at < STALE_S and _goes_on(view)
    if not (guarded or waits or left):
        return None
    return RunOnHost(
        run_id=run_id,
        state=view.state,
        attempt=view.spec.attempt,
        agent_pid=view.lease.agent_pid if view.agent_alive and view.lease else None,
        ranks=view.spec.launch.nproc,
        processes=len(left),
        age_s=max(0.0, now - view.spec.created_at),
        waits=waits,
        shared=view.spec.share,
        orphans=() if guarded else left,
    )


def _goes_on(view: rundir.View) -> bool:
    """A supervisor that was heard of a moment ago may start the next attempt: nobody has ended the run."""
    asked = rundir.read_stop(view.run)
    stopped = asked is not None and asked.epoch == 0
    return rundir.supervised(view.run) and view.state is not NodeState.SUCCEEDED and not stopped


def _look(host: HostLayout, run_id: str) -> Optional[rundir.View]:
    try:
        return rundir.look(host.run(run_id))
    except (IntegrityError, OSError):
        return None


def _reaped(host: HostLayout, one: RunOnHost) -> RunOnHost:
    """End orphans by what every process of a run carries in its environment."""
    if not one.orphans:
        return one
    group = Group(run_id=one.run_id, run_dir=host.run(one.run_id).root)
    swept = sweep(group, grace_s=_REAP_GRACE_S, tick=time.sleep)
    return RunOnHost(
        run_id=one.run_id,
        state=one.state,
        attempt=one.attempt,
        ranks=one.ranks,
        processes=len(swept.left),
        age_s=one.age_s,
        waits=one.waits,
        orphans=swept.left,
        reaped=swept.ended,
    )


def _marked(host: HostLayout) -> dict[str, set[int]]:
    """Pids by the run of this workdir that their environment names, its directory gone or not."""
    mark = f"{names.RUN_DIR}={host.runs}/".encode()
    found: dict[str, set[int]] = {}
    processes = procs.table()
    mine = procs.ancestors(os.getpid(), processes)
    for pid, one in processes.items():
        value = procs.environment_entry(pid, mark) if one.running and pid not in mine else None
        if value is not None and RUN_ID.match(value):
            found.setdefault(value, set()).add(pid)
    return found


def _described(pids: set[int]) -> tuple[str, ...]:
    seen = [procs.stat(pid) for pid in sorted(pids)]
    return tuple(procs.describe(one) for one in seen if one and one.running)


def _names(host: HostLayout) -> list[str]:
    try:
        return os.listdir(host.runs)
    except OSError:
        return []
