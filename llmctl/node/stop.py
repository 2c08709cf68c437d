"""`stop`: end a run on this host and prove that nothing of it is left.

The agent does it where one lives; where it is dead, its guard or this command does.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from llmctl.errors import NotFoundError
from llmctl.node import atomic, cgroup, lease, procs, rankfiles, rundir, traces
from llmctl.node.group import recall_cgroup, sweep
from llmctl.node.status import checkpoint_step
from llmctl.wire.codec import dumps
from llmctl.wire.layout import RunLayout
from llmctl.wire.records import NodeExit, StopReport, StopRequest
from llmctl.wire.states import NodeState

_LOCK_DEADLINE_S = 60.0
_AGENT_DEADLINE_S = 20.0
_GUARD_DEADLINE_S = 12.0
_TRACES_DEADLINE_S = 5.0


def stop(workdir: str, run_id: str, request: StopRequest) -> StopReport:
    """End the run; fine where it has ended: leftovers are looked for all the same.

    Raises:
        NotFoundError: no such run here.
        ProvisionError: a supervisor asks that another one has replaced.
        IntegrityError: its node.json is damaged.
    """
    began = time.monotonic()
    run = rundir.find(rundir.host_layout(workdir), run_id)
    if request.epoch:
        rundir.refuse_replaced(run, request.epoch)
    with rundir.locked(run, deadline_s=_LOCK_DEADLINE_S):  # a start in progress is waited for
        view = _look(run)
    before = view.group.members()
    ports = traces.listening(ref.pid for ref in before)
    if not view.recorded:
        _end(view, request)
    elif request.epoch == 0 and rundir.supervised(run):  # between two attempts: there shall be no other
        atomic.write(run.stop_request, dumps(request))
    after = _look(run)
    swept = sweep(after.group, grace_s=request.grace_s if view.recorded else 0.0, tick=time.sleep)
    left = (*swept.left, *_traces_left(ports, before))
    return StopReport(
        run_id=run_id,
        state=after.state,
        ended=len([ref for ref in before if not procs.alive(ref)]),
        seconds=time.monotonic() - began,
        left=left,
        checkpoint_step=checkpoint_step(run, after.spec.attempt),
    )


def _look(run: RunLayout) -> rundir.View:
    view = rundir.look(run)
    if view is None:
        raise NotFoundError(f"nothing was started in {run.root}")
    return view


def _end(view: rundir.View, request: StopRequest) -> None:
    """Have a verdict on disk afterwards, whoever must write it."""
    if view.agent_alive and view.lease is not None:
        agent = lease.holder(view.lease)
        _ask(view.run, agent, request)
        if _verdict_within(view, request.grace_s + _AGENT_DEADLINE_S, unless_dead=agent):
            return
        procs.send(agent, signal.SIGKILL)  # it hangs or is frozen; its guard does the rest
    if _verdict_of_guard(view):
        return
    _end_without_agent(view, request)


def _ask(run: RunLayout, agent: procs.ProcRef, request: StopRequest) -> None:
    """stop.json and a nudge; on a full disk the signal alone says it."""
    try:
        atomic.write(run.stop_request, dumps(request))
    except OSError:
        procs.send(agent, signal.SIGINT)
    else:
        procs.send(agent, signal.SIGUSR1)


def _verdict_within(view: rundir.View, seconds: float, unless_dead: procs.ProcRef | None = None) -> bool:
    """Wait for exit.json; give up at once when the process that should write it is dead."""

    def over() -> bool:
        return unless_dead is not None and not procs.alive(unless_dead)

    return _poll(lambda: rundir.read_exit(view.attempt) is not None, seconds, over=over)


def _verdict_of_guard(view: rundir.View) -> bool:
    """Wait for the guard of a dead agent, as long as there is one."""
    _poll(lambda: not rundir.guarded(view.attempt), _GUARD_DEADLINE_S)
    return rundir.read_exit(view.attempt) is not None


def _end_without_agent(view: rundir.View, request: StopRequest) -> None:
    """Agent and guard are gone: the run has failed by that, before anyone asked it to stop."""
    swept = sweep(view.group, grace_s=request.grace_s, tick=time.sleep)
    cgroup.remove(recall_cgroup(view.attempt))
    verdict = NodeExit(
        state=NodeState.FAILED,
        code=1,
        reason=rundir.AGENT_DIED,
        ended_at=time.time(),
        ranks=rankfiles.exits(view.attempt),
        left=swept.left,
    )
    atomic.Reserved(view.attempt.exit, 0).commit(dumps(verdict), durable=True)


def _traces_left(ports: dict[str, int], before: dict[procs.ProcRef, procs.ProcStat]) -> tuple[str, ...]:
    """Ports and GPU memory; a driver may need a moment to give memory back."""
    found: tuple[str, ...] = ()

    def clean() -> bool:
        nonlocal found
        found = (*traces.still_listening(ports), *traces.on_gpu(ref.pid for ref in before))
        return not found

    _poll(clean, _TRACES_DEADLINE_S)
    return found


def _poll(done: Callable[[], bool], seconds: float, over: Callable[[], bool] = lambda: False) -> bool:
    """Ask `done` until it is true, `over` is true, or the time has passed; its last answer."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while not done():
        if over() or time.monotonic() >= deadline:
            return done()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return True
