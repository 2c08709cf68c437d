"""Stop a run on all its hosts at once, and tell per host what was proven."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError, NotFoundError
from llmctl.wire.records import StopReport, StopRequest
from llmctl.wire.states import NodeState

UNHEARD = StopRequest(grace_s=10.0, reason="stop requested while this host could not be reached")
"""A person's stop, for a host that answers again."""


def stop(
    connections: Connections,
    hosts: Sequence[Host],
    archive: AgentArchive,
    run_id: str,
    request: StopRequest,
) -> dict[str, StopReport | LlmctlError]:
    """One report per host: a StopReport, or the reason why that host could not be asked."""

    def one(host: Host) -> StopReport:
        client = AgentClient(connections.get(host.name), host, archive)
        try:
            return client.stop(run_id, request)
        except NotFoundError:  # it never got there: nothing is left either
            return StopReport(run_id=run_id, state=NodeState.CANCELLED, ended=0, seconds=0.0)

    return connections.each(hosts, one)
