"""Start one more attempt of a run: facts of its hosts now, a plan, and the agents. No code is pushed: the
hosts have this run's, and another tree would be another run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host, RunConfig
from llmctl.controller.execute.prepare import prepare
from llmctl.controller.execute.start import start
from llmctl.controller.plan.attempts import Policy
from llmctl.controller.plan.plan import Identity, plan_run
from llmctl.controller.transport.pool import Connections
from llmctl.wire.specs import Peer


def starter(
    config: RunConfig,
    policy: Policy,
    connections: Connections,
    archive: AgentArchive,
    *,
    run_id: str,
    created_at: float,
    tree: str | None,
    epoch: int,
    allowed: tuple[str, ...],
    vocabulary: int | None,
    cache: Path,
) -> Callable[[int, tuple[Host, ...]], tuple[Peer, ...]]:
    """A `loop.Starter` for this run."""

    def begin(number: int, hosts: tuple[Host, ...]) -> tuple[Peer, ...]:
        now = replace(config, hosts=hosts)
        # What the code is was settled at the start: here its folder need not even be there.
        without_code = replace(now, job=config.job.model_copy(update={"code": None}))
        prepared = prepare(
            without_code,
            connections,
            archive,
            cache=cache,
            push=False,
            allow_mismatch=allowed,
            begun=True,
        )
        identity = Identity(
            run_id=run_id,
            attempt=number,
            created_at=created_at,
            agent=archive.hash,
            tree=tree,
            epoch=epoch,
            contact_s=policy.lease_s if policy.elastic else None,
        )
        plan = plan_run(now, prepared.facts, identity, vocabulary)
        start(plan, now, connections, archive)
        return plan.nodes[0].peers

    return begin
