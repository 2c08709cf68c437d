"""The network between hosts: which ways there are to measure, in which rounds, and what came of it. Pure.

A way joins an interface of one host with one of another. Addresses are those that the hosts themselves have,
or `internal_addr`; whether peers reach them is measured, never assumed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llmctl.controller.config.types import Host
from llmctl.controller.plan.network import LOOPBACK
from llmctl.controller.probe.facts import HostFacts
from llmctl.wire.measure import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One address of one host. `interface` is empty where none of the host's own has it (a NAT's address)."""

    addr: str
    interface: str = ""
    prefix: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One measured way between two hosts, the first of which is `Link.a`.

    Attributes:
        rtt_s: shortest round trip of one byte, seconds; None: neither side could connect.
        there, back: bytes per second, one TCP stream, from `a` to `b` and from `b` to `a`.
        no_ab, no_ba: why `a` could not connect to `b`, and `b` to `a`; empty: it could.
        ssh_ab, ssh_ba: in that case, whether the SSH port did answer.
        port_a, port_b: that were tried.
    """

    a: End
    b: End
    rtt_s: float | None = None
    there: float | None = None
    back: float | None = None
    no_ab: str = ""
    no_ba: str = ""
    ssh_ab: bool | None = None
    ssh_ba: bool | None = None
    port_a: int = 0
    port_b: int = 0

    @property
    def works(self) -> bool:
        """Collectives connect in either direction: one is not enough."""
        return not self.no_ab and not self.no_ba and self.rtt_s is not None

    @property
    def rate(self) -> float:
        """Of the slower direction, bytes per second; 0: unknown or none."""
        return min(self.there or 0.0, self.back or 0.0) if self.works else 0.0

    def reversed(self) -> Way:
        """The same way as the other host sees it."""
        return Way(
            a=self.b,
            b=self.a,
            rtt_s=self.rtt_s,
            there=self.back,
            back=self.there,
            no_ab=self.no_ba,
            no_ba=self.no_ab,
            ssh_ab=self.ssh_ba,
            ssh_ba=self.ssh_ab,
            port_a=self.port_b,
            port_b=self.port_a,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """All ways between two hosts (by name), measured at Unix time `at`; none: no address in common."""

    a: str
    b: str
    at: float
    ways: tuple[Way, ...] = ()

    def seen_from(self, name: str) -> Link:
        """With `name` as `a`."""
        if name == self.a:
            return self
        ways = tuple(way.reversed() for way in self.ways)
        return Link(a=self.b, b=self.a, at=self.at, ways=ways)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetMap:
    """The links between all pairs of some hosts. `ports`: where each host's kernel takes free ports from."""

    hosts: tuple[str, ...]
    links: tuple[Link, ...]
    ports: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def between(self, a: str, b: str) -> Link | None:
        """The link of two hosts, `a` first; None: it was not measured."""
        for link in self.links:
            if {link.a, link.b} == {a, b}:
                return link.seen_from(a)
        return None

    @property
    def oldest(self) -> float:
        """When the first of these links was measured; 0: there are none."""
        return min((link.at for link in self.links), default=0.0)


def rounds(names: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Every pair once, no host twice in a round: the circle method of round-robin tournaments.

    Who comes first in a pair takes turns, so that every host asks and is asked.
    """
    place = {name: number for number, name in enumerate(names)}
    ring: list[str | None] = [*names, *([None] if len(names) % 2 else [])]
    half = len(ring) // 2
    for _ in range(len(ring) - 1):
        facing = zip(ring[:half], reversed(ring[half:]), strict=True)
        pairs = [sorted((a, b), key=place.__getitem__) for a, b in facing if a is not None and b is not None]
        yield tuple((a, b) if (place[a] + place[b]) % 2 else (b, a) for a, b in pairs)
        ring = [ring[0], ring[-1], *ring[1:-1]]


def ends(host: Host, facts: HostFacts) -> tuple[End, ...]:
    """The addresses by which peers may reach a host: what hosts.yaml says of it, else all of its own."""
    own = facts.python.addresses if facts.python else ()
    found = tuple(End(addr=one.ip, interface=one.interface, prefix=one.prefix) for one in own)
    if host.internal_addr:
        mine = tuple(end for end in found if end.addr == host.internal_addr)
        return mine or (End(addr=host.internal_addr, interface=host.interface or ""),)
    if host.interface:
        return tuple(end for end in found if end.interface == host.interface)
    return tuple(end for end in found if not ipaddress.ip_address(end.addr).is_loopback)


def candidates(
    a: Sequence[End], b: Sequence[End], *, both_local: bool = False
) -> tuple[tuple[End, End, bool], ...]:
    """(end of a, end of b, is spare) of every way worth a try, those inside one network first.

    Ways through a router are spare: tried where nothing nearer is reached. An address that both have, as
    every Docker host has 172.17.0.1, leads to oneself: it is a way only between two names of one machine.
    """
    common = {end.addr for end in a} & {end.addr for end in b}
    twins = tuple((end, end, False) for end in b if end.addr in common)
    if both_local:
        loop = End(addr=LOOPBACK, interface="lo", prefix=8)
        return ((loop, loop, False), *twins)
    mine = [end for end in a if end.addr not in common]
    theirs = [end for end in b if end.addr not in common]
    if not mine or not theirs:
        return twins[:1]
    near = [(x, y, False) for y in theirs for x in mine if _share(x, y)]
    far = [(x, y, bool(near)) for y in theirs for x in mine[:1] if not any(_share(o, y) for o in mine)]
    return (*near, *far)


def current(link: Link, a: Sequence[End], b: Sequence[End], *, both_local: bool = False) -> Link | None:
    """A link that was measured before, with those ways whose addresses the hosts still have; `a` is `link.a`.

    None: nothing of it is left, or the hosts have a new way that was never measured.
    """
    now = {(x, y) for x, y, spare in candidates(a, b, both_local=both_local) if not spare}
    ways = tuple(way for way in link.ways if both_local or (way.a in a and way.b in b))
    if not ways or not now <= {(way.a, way.b) for way in ways}:
        return None
    return Link(a=link.a, b=link.b, at=link.at, ways=ways)


def targets(ways: Sequence[tuple[End, End, bool]]) -> tuple[Target, ...]:
    """What the host of the first ends is asked to measure. By route, where no network is shared."""
    return tuple(
        Target(addr=y.addr, source=x.addr if _share(x, y) else "", spare=spare) for x, y, spare in ways
    )


def _share(x: End, y: End) -> bool:
    """One network, as both sides see it."""
    if not x.interface or not y.interface:
        return False
    return _network(x) == _network(y)


def _network(end: End) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(f"{end.addr}/{end.prefix}", strict=False)
