"""Ask one host for its facts and judge them, for `hosts check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Host
from llmctl.controller.execute.facts import facts_of, master_target
from llmctl.controller.execute.identity import Recogniser
from llmctl.controller.plan.deep import Deep, DeepResults, deep_verdicts
from llmctl.controller.plan.pool import pool_verdicts
from llmctl.controller.plan.preflight import asked_paths, verdicts
from llmctl.controller.plan.verdicts import Level, Verdict
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError, PreflightError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One reachable host: what it is, what was found about it, and what changed since it was last seen.

    `deep`: what `--deep` measured there.
    """

    facts: HostFacts
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    deep: Deep | None = None

    @property
    def problems(self) -> tuple[PreflightError, ...]:
        """Why it is not fit; empty: it is."""
        return tuple(
            PreflightError(verdict.message, host=verdict.host, stage="check", hint=verdict.hint)
            for verdict in self.verdicts
            if verdict.level is Level.UNFIT
        )


Results = dict[str, Checked | LlmctlError]


def check_hosts(
    hosts: Sequence[Host],
    connections: Connections,
    recogniser: Recogniser,
    *,
    job: JobFile | None = None,
    answered: Callable[[str, Checked | LlmctlError], None] = lambda _name, _result: None,
) -> Results:
    """Every host's facts and verdicts, all at once, one round trip each; then what comparing them shows.

    Args:
        job: judge the hosts for it.
        answered: told each host's own result as it comes, from several threads.
    """

    def one(host: Host) -> Checked:
        try:
            found = _check(host, hosts, connections, recogniser, job)
        except LlmctlError as error:
            answered(host.name, error)
            raise
        answered(host.name, found)
        return found

    return _compared(hosts, dict(connections.each(hosts, one)), recogniser.keys)


def _check(
    host: Host,
    hosts: Sequence[Host],
    connections: Connections,
    recogniser: Recogniser,
    job: JobFile | None,
) -> Checked:
    target = master_target(hosts[0])
    data = asked_paths(job) if job else []
    facts = facts_of(host, connections, target=target, data=data, full=True, job=job)
    recogniser.check(host, facts.more, connections)
    return Checked(
        facts=facts,
        verdicts=tuple(verdicts(host, facts, job)),
        notes=recogniser.notes.get(host.name, ()),
    )


def with_deep(results: Results, deep: DeepResults) -> Results:
    """The same hosts with what was measured, and what that says of them."""
    found = dict(results)
    verdicts = deep_verdicts(deep)
    for name, measured in deep.hosts.items():
        mine = results[name]
        if isinstance(mine, Checked):
            told = [*mine.verdicts, *(verdict for verdict in verdicts if verdict.host == name)]
            told.sort(key=lambda one: one.level is Level.WARN)
            found[name] = replace(mine, verdicts=tuple(told), deep=measured)
    return found


def _compared(hosts: Sequence[Host], results: Results, keys: Mapping[str, str]) -> Results:
    facts = {name: result.facts for name, result in results.items() if isinstance(result, Checked)}
    for verdict in pool_verdicts(hosts, facts, keys):
        mine = results[verdict.host]
        if isinstance(mine, Checked):
            both = sorted((*mine.verdicts, verdict), key=lambda one: one.level is Level.WARN)
            results[verdict.host] = replace(mine, verdicts=tuple(both))
    return results
