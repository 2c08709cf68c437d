"""`status`: what this host knows of one run or of all, read from files; nothing is asked of an agent."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from llmctl.errors import IntegrityError, NotFoundError
from llmctl.node import hang, journal, rundir, tail
from llmctl.node.rankfiles import exits, first_failure
from llmctl.wire import metrics
from llmctl.wire.layout import RUN_ID, HostLayout, RunLayout
from llmctl.wire.records import NodeStatus, RankExit, StatusReply
from llmctl.wire.states import NodeState

_FAILURE_LINES = 20


def status(workdir: str, run_id: str | None) -> StatusReply:
    """One run, or all, newest first.

    Raises:
        NotFoundError: no such run here, or its start has not written node.json yet.
        IntegrityError: the asked run's node.json is damaged; among all runs such a one is left out.
    """
    host = rundir.host_layout(workdir)
    now = time.time()
    if run_id is None:
        return StatusReply(now=now, nodes=_all(host, now))
    node = _of_run(rundir.find(host, run_id), now)
    if node is None:
        raise NotFoundError(f"run {run_id} has not been started here")
    return StatusReply(now=now, nodes=(node,))


def _all(host: HostLayout, now: float) -> tuple[NodeStatus, ...]:
    try:
        names = [name for name in os.listdir(host.runs) if RUN_ID.match(name)]
    except OSError:
        return ()
    nodes = [node for name in names if (node := _lenient(host.run(name), now)) is not None]
    return tuple(sorted(nodes, key=lambda node: node.spec.created_at, reverse=True))


def _lenient(run: RunLayout, now: float) -> NodeStatus | None:
    try:
        return _of_run(run, now)
    except (IntegrityError, OSError):
        return None


def _of_run(run: RunLayout, now: float) -> NodeStatus | None:
    view = rundir.look(run)
    if view is None:
        return None
    failure = _failure(view)
    lines: tuple[str, ...] = ()
    if failure is not None:
        lines = tail.last_lines(view.attempt.rank_log(failure.rank), _FAILURE_LINES)
    elif view.state is NodeState.FAILED:
        lines = tail.last_lines(view.attempt.launcher_log, _FAILURE_LINES)
    return NodeStatus(
        spec=view.spec,
        state=view.state,
        now=now,
        agent_alive=view.agent_alive,
        lease=view.lease,
        exit=view.exit,
        failure=failure,
        failure_log=lines,
        metrics=_last_metric(view.attempt.metrics, metrics.STEP),
        checkpoint_step=checkpoint_step(run, view.spec.attempt),
        checkpoint_problem=_checkpoint_problem(view.attempt.metrics),
        last_event=journal.last_event(run),
        progress=hang.progress_of(view.attempt, _ranks(view)),
        hang=hang.read_hang(view.attempt),
        supervision=rundir.read_supervision(run),
    )


def _ranks(view: rundir.View) -> range:
    launch = view.spec.launch
    return range(launch.first_rank, launch.first_rank + launch.nproc)


def _failure(view: rundir.View) -> RankExit | None:
    """The cause of a failure, also while the launcher is still ending the others."""
    if view.state in (NodeState.SUCCEEDED, NodeState.CANCELLED, NodeState.PREEMPTED):
        return None
    return first_failure(view.exit.ranks if view.recorded and view.exit else exits(view.attempt))


def checkpoint_step(run: RunLayout, attempt: int) -> int | None:
    """The last committed step that this run's metrics name, of the newest attempt that has one."""
    for number in range(attempt, 0, -1):
        found = _last_metric(run.attempt(number).metrics, metrics.CHECKPOINT)
        if found is not None and isinstance(found.get("step"), int):
            step: int = found["step"]
            return step
    return None


def _checkpoint_problem(path: str) -> str | None:
    """Why there is no newer checkpoint, where the last one that was due in this attempt has failed."""
    found = _last_metric(path, metrics.CHECKPOINT, metrics.CHECKPOINT_FAILED)
    if found is None or found["kind"] == metrics.CHECKPOINT:
        return None
    return f"checkpoint {found.get('step')} failed: {found.get('error')}"


def _last_metric(path: str, *kinds: str) -> dict[str, Any] | None:
    """The last line of these kinds. Any script may write there: what is no such line is passed over."""
    quoted = [f'"{kind}"'.encode() for kind in kinds]
    for line in tail.lines_backwards(path):
        if not any(kind in line for kind in quoted):
            continue
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("kind") in kinds:
            return found
    return None
