"""Ask hosts for runs, all at once: one answer per host, whatever happens to the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.collect.view import Answer, RunView, merge
from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.errors import HostErrors, LlmctlError, NotFoundError
from llmctl.wire.records import StatusReply

DEADLINE_S = 15.0
MOST_GROUPS = 16


def run_view(
    connections: Connections,
    hosts: Sequence[Host],
    archive: AgentArchive,
    run_id: str,
    *,
    lost: Mapping[str, LlmctlError] | None = None,
) -> RunView:
    """One run as its hosts see it.

    Args:
        lost: hosts that were just found unreachable, with the reason: not asked again.

    Raises:
        NotFoundError: every host answered and none has it.
        HostErrors: no host could be asked.
    """
    unreachable = lost or {}
    answers = ask(connections, [h for h in hosts if h.name not in unreachable], archive, run_id)
    now = time.time()
    for name, error in unreachable.items():
        answers[name] = Answer(host=name, asked_at=now, answered_at=now, error=error)
    found = [answer for answer in answers.values() if answer.status]
    if not found:
        errors = [answer.error for answer in answers.values() if answer.error and not answer.missing]
        if errors:
            raise HostErrors(errors)
        names = ", ".join(host.name for host in hosts)
        raise NotFoundError(f"no run {run_id} on {names}", hint="llmctl status lists the runs there are")
    return merge(run_id, answers, now)


def ask(
    connections: Connections, hosts: Sequence[Host], archive: AgentArchive, run_id: str
) -> dict[str, Answer]:
    """The answer of each host about one run."""

    def one(host: Host) -> Answer:
        asked = time.time()
        try:
            client = AgentClient(connections.get(host.name), host, archive)
            reply = client.status(run_id, deadline_s=DEADLINE_S)
        except NotFoundError as error:
            return Answer(host=host.name, asked_at=asked, answered_at=time.time(), error=error, missing=True)
        except LlmctlError as error:
            return Answer(host=host.name, asked_at=asked, answered_at=time.time(), error=error)
        return Answer(host=host.name, asked_at=asked, answered_at=time.time(), status=reply.nodes[0])

    done = connections.each(hosts, one)
    return {name: _answer(name, answer) for name, answer in done.items()}


def all_runs(
    connections: Connections, hosts: Sequence[Host], archive: AgentArchive
) -> tuple[list[RunView], list[LlmctlError]]:
    """Every run of these hosts, newest first, and the hosts that could not be asked.

    A host that does not answer still counts in the runs that its peers know it to be part of.
    """

    def one(host: Host) -> tuple[float, StatusReply]:
        asked = time.time()
        client = AgentClient(connections.get(host.name), host, archive)
        return asked, client.status(deadline_s=DEADLINE_S)

    done = connections.each(hosts, one)
    now = time.time()
    errors = [value for value in done.values() if isinstance(value, LlmctlError)]
    runs: dict[str, dict[str, Answer]] = {}
    for name, value in done.items():
        if isinstance(value, LlmctlError):
            continue
        asked, reply = value
        for status in reply.nodes:
            answer = Answer(host=name, asked_at=asked, answered_at=now, status=status)
            runs.setdefault(status.spec.run_id, {})[name] = answer
    views = [merge(run_id, _complete(answers, done, now), now) for run_id, answers in runs.items()]
    return sorted(views, key=lambda view: view.created_at, reverse=True), errors


def ask_groups(
    groups: Sequence[tuple[Host, ...]],
    connect: Callable[[Sequence[Host]], Connections],
    archive: AgentArchive,
) -> dict[tuple[Host, ...], tuple[dict[str, RunView], list[LlmctlError]]]:
    """`all_runs` of several groups of hosts at once: an unreachable host delays no other group."""
    if not groups:
        return {}

    def one(hosts: tuple[Host, ...]) -> tuple[dict[str, RunView], list[LlmctlError]]:
        views, errors = all_runs(connect(hosts), hosts, archive)
        return {view.run_id: view for view in views}, errors

    with ThreadPoolExecutor(min(len(groups), MOST_GROUPS)) as threads:
        return dict(zip(groups, threads.map(one, groups), strict=True))


def _complete(
    answers: dict[str, Answer], done: dict[str, tuple[float, StatusReply] | LlmctlError], now: float
) -> dict[str, Answer]:
    """Add the peers that gave no status: unreachable, or reachable without this run."""
    spec = next(answer.status.spec for answer in answers.values() if answer.status)
    complete = dict(answers)
    for peer in spec.peers:
        if peer.host in complete or peer.host not in done:
            continue
        value = done[peer.host]
        error = value if isinstance(value, LlmctlError) else None
        complete[peer.host] = Answer(
            host=peer.host, asked_at=now, answered_at=now, error=error, missing=error is None
        )
    return complete


def _answer(name: str, value: Answer | LlmctlError) -> Answer:
    """`each` wraps what a thread raised; `one` already turns every LlmctlError into an answer."""
    if isinstance(value, LlmctlError):
        return Answer(host=name, asked_at=0.0, answered_at=0.0, error=value)
    return value
