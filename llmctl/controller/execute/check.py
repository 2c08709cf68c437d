"""Ask one host for its facts and judge them, for `hosts check`."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.controller.config.types import Host
from llmctl.controller.execute.prepare import facts_of
from llmctl.controller.plan.preflight import host_problems
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.pool import Connections
from llmctl.errors import PreflightError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One reachable host: what it is, and why it is not fit (empty: it is)."""

    facts: HostFacts
    problems: tuple[PreflightError, ...]


def check_host(host: Host, connections: Connections) -> Checked:
    """Facts and verdicts of one host. Raises what connecting raises."""
    facts = facts_of(host, connections)
    problems = tuple(
        PreflightError(problem.message, host=problem.host, stage="check", hint=problem.hint)
        for problem in host_problems(host, facts)
    )
    return Checked(facts=facts, problems=problems)
