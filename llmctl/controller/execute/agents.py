"""What holds each host, asked of all at once; and waiting until nothing does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.errors import DeadlineError, LlmctlError
from llmctl.wire.agents import PsReply, PsRequest

POLL_S = 2.0
LONGEST_WAIT_S = 7 * 86400.0


def ask_ps(
    connections: Connections, hosts: Sequence[Host], archive: AgentArchive, *, reap: bool = False
) -> dict[str, PsReply | LlmctlError]:
    """One reply per host, or the reason why it could not be asked."""

    def one(host: Host) -> PsReply:
        return AgentClient(connections.get(host.name), host, archive).ps(PsRequest(reap=reap))

    return connections.each(hosts, one)


def busy_with(replies: dict[str, PsReply | LlmctlError]) -> dict[str, tuple[str, ...]]:
    """Host -> ids of the runs that hold it; free and silent hosts are left out."""
    found = {}
    for name, reply in replies.items():
        if not isinstance(reply, LlmctlError):
            held = tuple(one.run_id for one in reply.runs if one.agent_pid is not None or one.waits)
            if held:
                found[name] = held
    return found


def await_free(
    connections: Connections,
    hosts: Sequence[Host],
    archive: AgentArchive,
    told: Callable[[str], None],
    *,
    deadline_s: float = LONGEST_WAIT_S,
) -> None:
    """Until no run holds any of the hosts. One that can't be asked is no reason to wait: starting says why.

    Args:
        told: hears what is waited for, whenever that changes.

    Raises:
        DeadlineError: the time is up.
    """
    deadline = time.monotonic() + deadline_s
    last = ""
    while busy := busy_with(ask_ps(connections, hosts, archive)):
        line = "; ".join(f"{name} has {', '.join(runs)}" for name, runs in busy.items())
        if line != last:
            told(f"waiting: {line}")
            last = line
        if time.monotonic() > deadline:
            raise DeadlineError(f"still not free: {line}", stage="wait")
        time.sleep(POLL_S)
