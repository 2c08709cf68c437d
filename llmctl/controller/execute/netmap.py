"""Measure the network between hosts: one small program on each, pairs in rounds, no host in two at once.

One thread asks all hosts of a round before it waits for the first, so that 100 hosts need no 100 threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.backends.talk import EndedError, Talk
from llmctl.controller.config.types import Host
from llmctl.controller.plan.netmap import End, Link, Way, candidates, ends, rounds, targets
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.sshconfig import resolve
from llmctl.errors import LlmctlError
from llmctl.wire.measure import Listening, PathsReply, PathsRequest, WayReply

STAGE = "map"
SECONDS = 0.4
"""Of sending, each way: enough to leave slow start behind on any link, short enough for 100 hosts."""

CONNECT_S = 3.0
_PATIENCE_S = 60.0
"""For one way, beside its own time: a host that is busy answers late."""

Pair = frozenset[str]
Ways = tuple[tuple[End, End, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`links` in the order in which they were measured; `failed`: hosts that dropped out, and why.

    `ports`: where each host's kernel takes the ports from that programs do not choose.
    """

    links: tuple[Link, ...]
    failed: dict[str, LlmctlError]
    ports: dict[str, tuple[int, int]]


def pairs_of(names: Sequence[str]) -> set[Pair]:
    """Every pair of these hosts."""
    return {frozenset((a, b)) for number, a in enumerate(names) for b in names[number + 1 :]}


def measure_links(
    hosts: Sequence[Host],
    facts: Mapping[str, HostFacts],
    connections: Connections,
    archive: AgentArchive,
    *,
    wanted: set[Pair],
    now: float,
    seconds: float = SECONDS,
    measured: Callable[[Link], None] = lambda _link: None,
) -> Measured:
    """Measure the `wanted` pairs over every interface, in both directions.

    Args:
        facts: of every host in `hosts`.
        seconds: of sending, for each way and direction.
        now: Unix time that the links are marked with.
        measured: told each link as it is done, in this thread.
    """
    party = _Party(hosts, facts, connections, archive)
    links: list[Link] = []
    try:
        party.gather([host for host in hosts if any(host.name in pair for pair in wanted)])
        for pairs in rounds([host.name for host in hosts]):
            here = [pair for pair in pairs if frozenset(pair) in wanted and party.has(*pair)]
            for link in party.play(here, seconds, now):
                links.append(link)
                measured(link)
    finally:
        party.leave()
    ports = {name: (said.first, said.last) for name, said in party.said.items()}
    return Measured(links=tuple(links), failed=party.failed, ports=ports)


class _Party:
    """The hosts' programs, while they run."""

    def __init__(
        self,
        hosts: Sequence[Host],
        facts: Mapping[str, HostFacts],
        connections: Connections,
        archive: AgentArchive,
    ) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._clients = connections
        self._archive = archive
        self._ends = {host.name: ends(host, facts[host.name]) for host in hosts}
        self._talks: dict[str, Talk] = {}
        self.said: dict[str, Listening] = {}
        self.failed: dict[str, LlmctlError] = {}

    def gather(self, hosts: Sequence[Host]) -> None:
        def one(host: Host) -> None:
            talk, said = self._client(host.name).converse(["measure"], Listening, stage=STAGE)
            self._talks[host.name], self.said[host.name] = talk, said

        for name, result in self._clients.each(hosts, one).items():
            if isinstance(result, LlmctlError):
                self.failed[name] = result

    def leave(self) -> None:
        for talk in self._talks.values():
            talk.close()
        self._talks.clear()

    def has(self, *names: str) -> bool:
        return all(name in self._talks for name in names)

    def play(self, pairs: Sequence[tuple[str, str]], seconds: float, now: float) -> list[Link]:
        """One round: the first of each pair measures, then the second looks whether it can connect, too."""
        tried = {pair: self._ways(*pair) for pair in pairs}
        first = self._ask({pair: ways for pair, ways in tried.items() if ways}, seconds)
        ways = {pair: _ways_there(tried[pair], reply.ways) for pair, reply in first.items()}
        back = {(b, a): _turned(found) for (a, b), found in ways.items() if found}
        half = {pair for pair, found in ways.items() if not any(way.rtt_s for way in found)}
        replies = self._ask({pair: way for pair, way in back.items() if pair[::-1] not in half}, 0.0)
        replies |= self._ask({pair: way for pair, way in back.items() if pair[::-1] in half}, seconds)
        links = []
        for a, b in pairs:
            if not self.has(a, b):
                continue  # one of them dropped out in this round
            found = _ways_back(ways.get((a, b), ()), replies.get((b, a)))
            ports = [replace(way, port_a=self.said[a].port, port_b=self.said[b].port) for way in found]
            links.append(Link(a=a, b=b, at=now, ways=tuple(ports)))
        return links

    def _ways(self, a: str, b: str) -> Ways:
        local = self._hosts[a].is_local and self._hosts[b].is_local
        return candidates(self._ends[a], self._ends[b], both_local=local)

    def _ask(
        self, tried: Mapping[tuple[str, str], Ways], seconds: float
    ) -> dict[tuple[str, str], PathsReply]:
        """Tell the first of every pair what to measure, then hear all of them."""
        asked = [pair for pair, ways in tried.items() if ways and self._say(pair, ways, seconds)]
        replies = {}
        for pair in asked:
            each = 3 * CONNECT_S + 6 * seconds + _PATIENCE_S
            reply = self._hear(pair[0], each * len(tried[pair]))
            if reply is not None:
                replies[pair] = reply
        return replies

    def _say(self, pair: tuple[str, str], ways: Ways, seconds: float) -> bool:
        me, peer = pair
        if not self.has(me, peer):
            return False
        request = PathsRequest(
            port=self.said[peer].port,
            token=self.said[peer].token,
            targets=targets(ways),
            seconds=seconds,
            connect_s=CONNECT_S,
            ssh_port=_ssh_port(self._hosts[peer]),
        )
        try:
            self._talks[me].say(request)
        except LlmctlError as error:
            self._drop(me, error)
            return False
        return True

    def _hear(self, name: str, deadline_s: float) -> PathsReply | None:
        try:
            return self._talks[name].hear(PathsReply, deadline_s=deadline_s)
        except EndedError as error:
            self._drop(name, self._client(name).ended(error, STAGE))
        except LlmctlError as error:
            self._drop(name, error)
        return None

    def _drop(self, name: str, error: LlmctlError) -> None:
        self.failed[name] = error
        self._talks.pop(name).close()

    def _client(self, name: str) -> AgentClient:
        return AgentClient(self._clients.get(name), self._hosts[name], self._archive)


def _ssh_port(host: Host) -> int:
    return 0 if host.is_local else resolve(host, config_path=None).port


def _ways_there(tried: Ways, replies: Iterable[WayReply]) -> tuple[Way, ...]:
    """What the first host measured; its kernel may have chosen another of its addresses than was thought."""
    by_target = {
        (y.addr, x.addr if s.source else ""): (x, y)
        for (x, y, _), s in zip(tried, targets(tried), strict=True)
    }
    known = {x.addr: x for x, _, _ in tried}
    found = []
    for reply in replies:
        at = next((ends for key, ends in by_target.items() if _is(reply, key)), None)
        if at is None:
            continue
        mine = known.get(reply.source, at[0]) if reply.rtt_s is not None else at[0]
        found.append(
            Way(
                a=mine,
                b=at[1],
                rtt_s=reply.rtt_s,
                there=reply.there,
                back=reply.back,
                no_ab=reply.error,
                ssh_ab=reply.ssh_open,
            )
        )
    return tuple(found)


def _is(reply: WayReply, key: tuple[str, str]) -> bool:
    addr, source = key
    return reply.addr == addr and (not source or reply.source == source)


def _turned(ways: Iterable[Way]) -> Ways:
    return tuple((way.b, way.a, False) for way in ways)


def _ways_back(ways: Sequence[Way], reply: PathsReply | None) -> tuple[Way, ...]:
    """The same ways with what the second host found."""
    answers = reply.ways if reply is not None else ()
    return tuple(_with(way, answer) for way, answer in zip(ways, answers, strict=False)) or tuple(ways)


def _with(way: Way, answer: WayReply) -> Way:
    rtts = [rtt for rtt in (way.rtt_s, answer.rtt_s) if rtt is not None]
    return replace(
        way,
        rtt_s=min(rtts, default=None),
        there=way.there if way.there is not None else answer.back,
        back=way.back if way.back is not None else answer.there,
        no_ba=answer.error,
        ssh_ba=answer.ssh_open,
    )
