"""`start`: StartRequest on stdin, StartReply on stdout once the agent lives on its own."""

from __future__ import annotations

import dataclasses
import os
import time

from llmctl.errors import BusyError, CancelledRunError, DeadlineError, ProvisionError
from llmctl.node import atomic, daemon, launch, rundir, tree
from llmctl.node.agents import occupants
from llmctl.node.group import sweep
from llmctl.wire.codec import dumps
from llmctl.wire.layout import RUN_ID, HostLayout, RunLayout
from llmctl.wire.records import StartReply, StartRequest
from llmctl.wire.specs import NodeSpec

_LOCK_DEADLINE_S = 60.0


def start(request: StartRequest) -> StartReply:
    """Start one attempt; asked again for the same one, answer as before.

    Raises:
        ReplacedError: another supervisor acts for the run.
        CancelledRunError: a supervisor's start of what a person has stopped.
        BusyError: another run holds this host, and this one shall not share it.
        ProvisionError: the spec can't be launched, contradicts what runs here, or the host has no room.
        IntegrityError: the agent archive or an earlier node.json is damaged.
    """
    host = rundir.host_layout(request.spec.workdir)
    spec = dataclasses.replace(request.spec, workdir=host.workdir)
    problem = launch.check(spec.launch) or (
        None if RUN_ID.match(spec.run_id) else f"bad run id {spec.run_id!r}"
    )
    if problem:
        raise ProvisionError(problem)
    run = host.run(spec.run_id)
    for folder in (host.workdir, host.runs, run.root):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    with rundir.locked(run, deadline_s=_LOCK_DEADLINE_S):
        pid = _running_already(run, spec)
        if pid is None:
            pid = _start_alone(host, run, spec, request)
    return StartReply(run_id=spec.run_id, agent_pid=pid)


def _start_alone(host: HostLayout, run: RunLayout, spec: NodeSpec, request: StartRequest) -> int:
    """One start at a time on this host, so that two runs can't both find it free. The agent's pid."""
    with rundir.locked(RunLayout(host.runs), deadline_s=_LOCK_DEADLINE_S, name=".start"):
        others = () if request.share else occupants(host, but=spec.run_id)
        if others:
            raise BusyError(
                f"{', '.join(others)} runs here",
                hint=f"--wait for its end, --share the host knowingly, or llmctl stop {others[0]}",
            )
        earlier = rundir.look(run)
        shared = spec.share or (earlier is not None and earlier.spec.share)
        spec = dataclasses.replace(spec, share=shared)  # what was once allowed holds for every attempt
        _prepare(host, run, spec)
        return daemon.launch(spec, request.secrets, dict(os.environ))


def _running_already(run: RunLayout, spec: NodeSpec) -> int | None:
    """The pid of the agent that this very request has started before; None: go on and start."""
    view = rundir.look(run)
    if view is None:
        return None
    _refuse_unwanted(run, spec)
    if (
        view.spec == dataclasses.replace(spec, share=view.spec.share)
        and view.lease
        and (view.agent_alive or view.recorded)
    ):
        return view.lease.agent_pid
    if view.agent_alive and not view.recorded:
        raise ProvisionError(
            f"attempt {view.spec.attempt} of {spec.run_id} is running here with other settings",
            hint=f"llmctl stop {spec.run_id}",
        )
    if spec.attempt <= view.spec.attempt and view.lease is not None:
        raise ProvisionError(
            f"attempt {view.spec.attempt} of {spec.run_id} has ended here ({view.state.value})",
            hint=f"start attempt {view.spec.attempt + 1}",
        )
    _clear_the_way(view)
    _set_other_code_aside(run, view.spec, spec)
    return None


def _refuse_unwanted(run: RunLayout, spec: NodeSpec) -> None:
    """A supervisor that was replaced starts nothing, and none starts what a person has stopped."""
    if spec.epoch == 0:
        return
    rundir.refuse_replaced(run, spec.epoch)
    asked = rundir.read_stop(run)
    if asked is not None and asked.epoch == 0:
        raise CancelledRunError(
            f"{spec.run_id} was stopped: {asked.reason}", hint=f"llmctl resume {spec.run_id}"
        )


def _clear_the_way(view: rundir.View) -> None:
    """An earlier attempt must be over for good: its guard would take new ranks for old ones."""
    deadline = time.monotonic() + _LOCK_DEADLINE_S
    while rundir.guarded(view.attempt):
        if time.monotonic() > deadline:
            raise DeadlineError(f"attempt {view.spec.attempt} is still being ended", hint="try again later")
        time.sleep(0.01)
    sweep(view.group, grace_s=0.0, tick=time.sleep)


def _set_other_code_aside(run: RunLayout, old: NodeSpec, new: NodeSpec) -> None:
    """A new attempt goes on in its cwd, with what the job wrote there, unless it brings other code."""
    if old.tree != new.tree and os.path.isdir(run.code):
        os.rename(run.code, f"{run.code}.attempt-{old.attempt}")


def _prepare(host: HostLayout, run: RunLayout, spec: NodeSpec) -> None:
    tree.unpack_archive(host.agent(spec.agent), host.agent_dir(spec.agent), spec.agent)
    os.makedirs(run.attempt(spec.attempt).root, mode=0o700, exist_ok=True)
    os.makedirs(host.cache, mode=0o700, exist_ok=True)
    atomic.remove(run.stop_request)  # it was meant for an earlier attempt
    atomic.write(run.node_spec, dumps(spec), durable=True)
