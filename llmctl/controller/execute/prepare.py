"""Make every host ready for one start: connect, ask for facts, push what is missing. All hosts at once.

Nothing is started here, and one unfit host ends the whole preparation with every host's reason named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host, RunConfig
from llmctl.controller.execute.facts import facts_of, master_target
from llmctl.controller.execute.identity import Recogniser
from llmctl.controller.plan.parity import compared, differences, refusals, summary
from llmctl.controller.plan.pool import pool_problems
from llmctl.controller.plan.preflight import asked_paths, job_problems
from llmctl.controller.plan.verdicts import CLOCK
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.files import push_file
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.push import Push, PushResult
from llmctl.controller.transport.pushmemory import PushMemory
from llmctl.controller.transport.tree import Tree, scan
from llmctl.errors import HostErrors, LlmctlError, PreflightError
from llmctl.wire.layout import HostLayout

AGENT_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """One host, ready to start: its facts, and what was pushed to it (None: the job has no code)."""

    facts: HostFacts
    pushed: PushResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All hosts of a run, by name, and the tree that they now have.

    `notes`: what a person should hear: a reboot, a host that moved, a difference that was allowed.
    `alike`: in what the hosts agree, in one line; empty for a single host.
    """

    ready: dict[str, Ready]
    tree: Tree | None
    notes: tuple[str, ...] = ()
    alike: str = ""

    @property
    def facts(self) -> dict[str, HostFacts]:
        return {name: ready.facts for name, ready in self.ready.items()}


def prepare(
    config: RunConfig,
    connections: Connections,
    archive: AgentArchive,
    *,
    cache: Path,
    push: bool = True,
    progress: Callable[[int], None] | None = None,
    recogniser: Recogniser | None = None,
    allow_mismatch: Sequence[str] = (),
    begun: bool = False,
) -> Prepared:
    """Facts of every host, with code and agent pushed (unless `push` is False: a dry run).

    The tree is scanned while the hosts are being connected. `cache` is a folder of ours for the stat
    cache and for what was last pushed where. `progress` is told bytes as they are sent, from several threads.
    `recogniser` refuses a machine that was swapped; `allow_mismatch` names what may differ between hosts.
    `begun`: a further attempt of a run, which a clock that jumped meanwhile must not end.

    Raises:
        HostErrors: at least one host is unreachable, untrusted, unfit, unlike the others, or could not be
            pushed to.
        ConfigError: the tree itself can't be pushed.
    """
    target = master_target(config.hosts[0])
    with _pushing(config, cache) as sending:

        def one(host: Host) -> Ready:
            facts = _fit(host, config, connections, archive, target, recogniser, begun=begun)
            if not push:
                return Ready(facts=facts, pushed=None)
            return _send(host, facts, connections, archive, sending, progress)

        results = connections.each(config.hosts, one)
        tree = sending.tree if sending else None
    errors = [value for value in results.values() if isinstance(value, LlmctlError)]
    if errors:
        raise HostErrors(errors)
    ready = {name: value for name, value in results.items() if isinstance(value, Ready)}
    notes = recogniser.lines() if recogniser else []
    allowed_notes, alike = _alike(config, ready, recogniser.keys if recogniser else {}, allow_mismatch)
    return Prepared(ready=ready, tree=tree, notes=(*notes, *allowed_notes), alike=alike)


def _alike(
    config: RunConfig, ready: Mapping[str, Ready], keys: Mapping[str, str], allowed: Sequence[str]
) -> tuple[list[str], str]:
    """The parity gate: notes about what was allowed, and what the hosts share.

    Raises:
        HostErrors: one error per thing that differs, or that keeps these hosts from running one job.
    """
    facts = {name: one.facts for name, one in ready.items()}
    code = {name: one.pushed.tree_hash for name, one in ready.items() if one.pushed}
    wanted = config.job.train.backend
    gpus = wanted == "nccl" or (wanted == "auto" and all(known.gpus for known in facts.values()))
    found = differences(facts, code=code, gpus=gpus)
    errors: list[LlmctlError] = [
        PreflightError(
            one.message,
            stage="parity",
            hint=f"make the hosts alike, or --allow-mismatch {one.what} if you know why",
        )
        for one in refusals(found, allowed)
    ]
    errors += [
        PreflightError(verdict.message, host=verdict.host, stage="check", hint=verdict.hint)
        for verdict in pool_problems(config.hosts, facts, keys)
    ]
    if errors:
        raise HostErrors(errors)
    told = summary(compared(facts, code=code, gpus=gpus), allowed) if len(facts) > 1 else ""
    return [f"{one.message}; allowed by --allow-mismatch" for one in found], told


def _pushing(config: RunConfig, cache: Path) -> AbstractContextManager[Push | None]:
    """One push for all hosts; its scan of the tree starts now. None where the job has no code."""
    if config.job.code is None:
        return nullcontext()
    root = Path(config.base, config.job.code.path)
    return Push(lambda: scan(root, cache_dir=cache), PushMemory(cache))


def _fit(
    host: Host,
    config: RunConfig,
    connections: Connections,
    archive: AgentArchive,
    target: str,
    recogniser: Recogniser | None,
    *,
    begun: bool,
) -> HostFacts:
    """The host's facts; raises PreflightError with the first reason against the job."""
    data = asked_paths(config.job)
    facts = facts_of(host, connections, agent=archive.hash, target=target, data=data, job=config.job)
    if recogniser:
        recogniser.check(host, facts.more, connections)
    found = [one for one in job_problems(host, facts, config.job) if not (begun and one.about == CLOCK)]
    if found:
        first = found[0]
        raise PreflightError(first.message, host=host.name, stage="check", hint=first.hint)
    return facts


def _send(
    host: Host,
    facts: HostFacts,
    connections: Connections,
    archive: AgentArchive,
    sending: Push | None,
    progress: Callable[[int], None] | None,
) -> Ready:
    """Agent and code onto one host."""
    transport = connections.get(host.name)
    if facts.agent_bytes != len(archive.data):
        dest = HostLayout(facts.workdir).agent(archive.hash)
        push_file(transport, archive.data, dest, deadline_s=AGENT_DEADLINE_S)
    if sending is None:
        return Ready(facts=facts, pushed=None)
    python = facts.python.executable if facts.python else host.python
    pushed = sending.to(transport, workdir=facts.workdir, python=python, progress=progress)
    return Ready(facts=facts, pushed=pushed)
