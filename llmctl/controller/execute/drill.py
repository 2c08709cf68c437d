"""Break a run on one of its hosts, and watch it come back."""

from __future__ import annotations

import time
from collections.abc import Callable

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.collect.view import RunView
from llmctl.controller.config.types import Host
from llmctl.controller.plan.drill import Fault, Recovery, Struck
from llmctl.controller.transport.pool import Connections
from llmctl.errors import DeadlineError, HostUnreachableError, JobFailedError, LlmctlError
from llmctl.wire.drill import DrillReply, DrillRequest

ASK_S = 10.0
"""How long a host waits for the step before it answers that it has not come yet."""

LOOK_EVERY_S = 0.5
PASSING = (HostUnreachableError, DeadlineError)


def strike(
    connections: Connections,
    host: Host,
    archive: AgentArchive,
    run_id: str,
    fault: Fault,
    *,
    attempt: int,
    at_step: int,
    within_s: float,
) -> Struck:
    """Wait for the step, and break what is to be broken; the host itself does both, so that no slow line
    makes it late.

    Raises:
        DeadlineError: the run has not come to that step in time.
        JobFailedError: it has ended before.
    """
    deadline = time.monotonic() + within_s
    request = DrillRequest(
        fault=fault.fault, attempt=attempt, at_step=at_step, ranks=fault.ranks, wait_s=ASK_S
    )
    while True:
        reply = _ask(connections, host, archive, run_id, request)
        if reply is not None and reply.hit:
            return Struck(attempt=reply.attempt, step=reply.step or 0, hit=reply.hit)
        where = f"at step {reply.step}" if reply and reply.step else "before the first step"
        if reply is not None and (reply.state.ended or reply.attempt > attempt):
            raise JobFailedError(
                f"attempt {attempt} ended by itself ({where}), step {at_step} never came",
                host=host.name,
                stage="drill",
                hint=f"llmctl status {run_id} · llmctl logs {run_id}",
            )
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{where} after {within_s:g} s; the fault was to come at step {at_step}",
                host=host.name,
                stage="drill",
                hint="a smaller --at-step, or a longer --timeout",
            )


def _ask(
    connections: Connections, host: Host, archive: AgentArchive, run_id: str, request: DrillRequest
) -> DrillReply | None:
    """None where the line broke. What it may have done, the host tells when it is asked again."""
    try:
        return AgentClient(connections.get(host.name), host, archive).drill(run_id, request)
    except PASSING:
        time.sleep(LOOK_EVERY_S)
        return None


def await_recovery(
    look: Callable[[], RunView], struck: Struck, *, within_s: float, tell: Callable[[str], None]
) -> Recovery:
    """Until a later attempt is past the step of the fault, or there will be none.

    Args:
        look: the run as its hosts see it now.
        tell: hears what the run does meanwhile.
    """
    began = time.monotonic()
    first: float | None = None
    said = why = ""
    while time.monotonic() - began < within_s:
        view = _seen(look)
        if view is None:
            time.sleep(LOOK_EVERY_S)
            continue
        why = f"{view.state.value}: {view.note}" if view.note else view.state.value
        if why != said:
            said = why
            tell(why)
        if view.attempt > struck.attempt and view.step is not None:
            first = time.monotonic() - began if first is None else first
            if view.step > struck.step:
                hosts = tuple(node.host for node in view.nodes)
                return Recovery(attempt=view.attempt, seconds=first, hosts=hosts)
        if view.final:
            return Recovery(seconds=first, why=f"the run is {why}")
        time.sleep(LOOK_EVERY_S)
    return Recovery(seconds=first, why=f"not past step {struck.step} within {within_s:g} s; {why}")


def _seen(look: Callable[[], RunView]) -> RunView | None:
    """None where no host answers just now."""
    try:
        return look()
    except LlmctlError:
        return None
