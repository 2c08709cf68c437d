"""Start a Plan: one agent per node, all at once; what was started is ended again if one can't start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host, RunConfig
from llmctl.controller.plan.plan import Plan
from llmctl.controller.transport.pool import Connections
from llmctl.errors import HostErrors, LlmctlError
from llmctl.wire.records import StartReply, StartRequest, StopReport, StopRequest
from llmctl.wire.specs import NodeSpec
from llmctl.wire.supervision import REASON

UNDO_GRACE_S = 3.0


def start(
    plan: Plan,
    config: RunConfig,
    connections: Connections,
    archive: AgentArchive,
    *,
    share: bool | None = None,
) -> dict[str, StartReply]:
    """Start every node of the plan; returns once each agent holds its lease.

    Secrets leave this machine here, on the agents' stdin, and nowhere else. `share`: beside other runs of a
    host; False: refused there; None: a next attempt takes the place that its run has not given up.

    Raises:
        HostErrors: a node could not be started; the others were stopped again.
    """
    specs = {node.host: node for node in plan.nodes}

    def one(host: Host) -> StartReply:
        client = AgentClient(connections.get(host.name), host, archive)
        spec = specs[host.name] if share is None else replace(specs[host.name], share=share)
        return client.start(StartRequest(spec=spec, secrets=dict(config.secrets), share=share is not False))

    results = connections.each(config.hosts, one)
    errors = [value for value in results.values() if isinstance(value, LlmctlError)]
    if errors:
        _undo(specs, config, connections, archive, next_attempt=share is None)
        raise HostErrors(errors)
    return {name: value for name, value in results.items() if isinstance(value, StartReply)}


def _undo(
    specs: Mapping[str, NodeSpec],
    config: RunConfig,
    connections: Connections,
    archive: AgentArchive,
    *,
    next_attempt: bool,
) -> None:
    """End whatever did start, a host whose answer was lost included. Its own failure changes nothing:
    the error that is being raised is the one to act on, and a peer without partners ends by timeout.

    `next_attempt`: only the attempt ends by it, and the supervisor may start another one."""

    def one(host: Host) -> StopReport:
        spec, reason = specs[host.name], "another host could not start"
        request = StopRequest(grace_s=UNDO_GRACE_S, reason=reason)
        if next_attempt and spec.epoch:
            request = replace(request, reason=REASON + reason, epoch=spec.epoch)
        client = AgentClient(connections.get(host.name), host, archive)
        return client.stop(spec.run_id, request)

    connections.each(config.hosts, one)
