"""From a network map to interfaces, rank order and master, with the reasons. Pure; same map, same choice.

Interfaces: the set, one per host, whose worst link is the fastest; then that with the shortest round trips.
Order: hosts near to one another become neighbours and stay together, so that a ring runs over fast links and
a cut into pipeline stages falls on a slow one. What a second measurement could turn around counts for
nothing: rates and times are compared in classes, and hosts.yaml's order stays where it is as good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmctl.controller.config.types import Host
from llmctl.controller.plan.netmap import End, NetMap, Way
from llmctl.controller.plan.network import LOOPBACK

RATE_CLASS, RTT_CLASS = 1.5, 2.0
"""Rates within this factor are alike, and round trips: one run differs from the next by so much."""

LEVEL_GAP = 0.5
"""In classes: what separates the links of one kind from those of the next."""

LEAST_RTT = 50e-6
"""Below this, round trips measured by a Python program say more about the program."""

MOST_NAMES = 12

Score = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetChoice:
    """What a run on these hosts should use.

    Attributes:
        order: host names in rank order; the first is the master's.
        ends: by host, the interface and address to use.
        rate, rtt: of the slowest ring link, bytes per second and seconds.
        cut: the slowest link between neighbours of the order, where it is much slower than the others.
        why: one line per decision: (what, text).
        blocked: pairs that can't reach each other over the chosen interfaces.
    """

    order: tuple[str, ...]
    ends: dict[str, End]
    rate: float
    rtt: float
    cut: tuple[str, str] | None
    why: tuple[tuple[str, str], ...]
    blocked: tuple[tuple[str, str], ...] = ()


def choose(netmap: NetMap, order: Sequence[str]) -> NetChoice:
    """The choice for these hosts, at least two.

    Args:
        order: hosts.yaml's; every pair of it has a link in `netmap`.
    """
    names = list(order)
    ways = _Ways(netmap, names)
    ends = _choose_ends(ways, names)
    grid = _Grid(ways, names, ends)
    found = _better(grid, names, _clustered(grid, names))
    neighbours = list(itertools.pairwise(found))
    slow = [grid.rate(a, b) for a, b in _ring(found)]
    return NetChoice(
        order=tuple(found),
        ends=ends,
        rate=min(slow),
        rtt=max(grid.rtt(a, b) for a, b in _ring(found)),
        cut=_cut(grid, neighbours),
        why=tuple(_reasons(ways, grid, names, found, ends)),
        blocked=tuple((a, b) for a, b in itertools.combinations(names, 2) if grid.way(a, b) is None),
    )


def applied(hosts: Sequence[Host], choice: NetChoice) -> tuple[Host, ...]:
    """The hosts in rank order, with the interface and address to use where hosts.yaml names none."""
    by_name = {host.name: host for host in hosts}
    found = []
    for name in choice.order:
        host, end = by_name[name], choice.ends[name]
        interface = host.interface or end.interface or None
        found.append(replace(host, interface=interface, internal_addr=host.internal_addr or end.addr))
    return tuple(found)


def summary(choice: NetChoice, given: Sequence[str]) -> str:
    """`eth1 · 9.4 Gbit/s at worst · order a, c, b (hosts.yaml: a, b, c)`."""
    interfaces = sorted({end.interface or end.addr for end in choice.ends.values()})
    order = "order of hosts.yaml"
    if list(choice.order) != list(given):
        order = f"order {_some(choice.order)} (hosts.yaml: {_some(given)})"
    return f"{', '.join(interfaces)} · {bits(choice.rate)} at worst · {order}"


class _Ways:
    """Ways by pair and by the two ends: dictionaries instead of searches, 100 hosts have 4950 links."""

    def __init__(self, netmap: NetMap, names: Sequence[str]) -> None:
        self._by_ends: dict[tuple[str, str, End, End], Way] = {}
        self.ends: dict[str, list[End]] = {name: [] for name in names}
        for link in netmap.links:
            if link.a not in self.ends or link.b not in self.ends:
                continue
            for way in link.ways:
                self._by_ends[link.a, link.b, way.a, way.b] = way
                self._by_ends[link.b, link.a, way.b, way.a] = way.reversed()
                for name, end in ((link.a, way.a), (link.b, way.b)):
                    if end not in self.ends[name]:
                        self.ends[name].append(end)
        if all(any(end.addr == LOOPBACK for end in found) for found in self.ends.values()):
            # Every host is this machine: none of its other addresses is better.
            self.ends = {
                name: [end for end in found if end.addr == LOOPBACK] for name, found in self.ends.items()
            }
        for found in self.ends.values():
            found.sort(key=lambda end: (end.interface, end.addr))

    def way(self, a: str, b: str, ends: Mapping[str, End]) -> Way | None:
        """The way between the chosen ends, where it works."""
        if a not in ends or b not in ends:
            return None
        way = self._by_ends.get((a, b, ends[a], ends[b]))
        return way if way is not None and way.works else None

    def links_of(self, name: str, end: End) -> list[Way]:
        """All working ways that begin at one end of a host."""
        return [w for (a, _, mine, _), w in self._by_ends.items() if a == name and mine == end and w.works]


def _choose_ends(ways: _Ways, names: Sequence[str]) -> dict[str, End]:
    """The best of several starts, each improved host by host until nothing gets better."""
    starts = [_start(ways, names, network) for network in _networks(ways)]
    improved = [_improve(ways, names, start) for start in starts or [_start(ways, names, "")]]
    return min(improved, key=lambda ends: _score(ways, names, ends))


def _networks(ways: _Ways) -> list[str]:
    found = {end.interface for ends in ways.ends.values() for end in ends}
    return sorted(found)


def _start(ways: _Ways, names: Sequence[str], interface: str) -> dict[str, End]:
    """That interface wherever a host has it, else the host's fastest."""
    chosen = {}
    for name in names:
        have = ways.ends[name]
        if have:
            named = [end for end in have if end.interface == interface]
            chosen[name] = named[0] if named else max(have, key=lambda end: _speed(ways, name, end))
    return chosen


def _speed(ways: _Ways, name: str, end: End) -> tuple[int, float]:
    found = ways.links_of(name, end)
    return len(found), min((way.rate for way in found), default=0.0)


def _improve(ways: _Ways, names: Sequence[str], ends: dict[str, End]) -> dict[str, End]:
    """Judged by the links of the changed host alone: 100 hosts have 4950 links."""
    ends = dict(ends)
    for _ in range(len(names)):
        before = dict(ends)
        for name in (name for name in names if name in ends):
            others = [other for other in names if other != name]
            scores = {
                end: _judged([ways.way(name, other, {**ends, name: end}) for other in others])
                for end in ways.ends[name]
            }
            best = min(scores.values())
            if best < scores[ends[name]]:
                ends[name] = next(end for end, score in scores.items() if score == best)
        if ends == before:
            break
    return ends


def _score(ways: _Ways, names: Sequence[str], ends: Mapping[str, End]) -> Score:
    return _judged([ways.way(a, b, ends) for a, b in itertools.combinations(names, 2)])


def _judged(found: Sequence[Way | None]) -> Score:
    """Smaller is better: pairs without a way, then the slowest link, the mean one, round trips."""
    working = [way for way in found if way is not None]
    if not working:
        return (len(found), 0, 0, 0)
    rates = [_rate_class(way.rate) for way in working]
    late = [_rtt_class(way.rtt_s or 0.0) for way in working]
    return (len(found) - len(working), -min(rates), -sum(rates) / len(rates), sum(late) / len(late))


def _rate_class(rate: float) -> int:
    return round(math.log(max(rate, 1.0), RATE_CLASS))


def _rtt_class(rtt: float) -> int:
    return round(math.log(max(rtt, LEAST_RTT) / LEAST_RTT, RTT_CLASS))


class _Grid:
    """The links over the chosen ends."""

    def __init__(self, ways: _Ways, names: Sequence[str], ends: Mapping[str, End]) -> None:
        self._ways = {(a, b): ways.way(a, b, ends) for a in names for b in names if a != b}
        level = _levels({_cost(way) for way in self._ways.values()})
        self._cost = {pair: level[_cost(way)] for pair, way in self._ways.items()}

    def way(self, a: str, b: str) -> Way | None:
        return self._ways[a, b]

    def rate(self, a: str, b: str) -> float:
        way = self._ways[a, b]
        return way.rate if way else 0.0

    def rtt(self, a: str, b: str) -> float:
        way = self._ways[a, b]
        return way.rtt_s or 0.0 if way else 0.0

    def cost(self, a: str, b: str) -> float:
        """In classes: how far apart two hosts are. Symmetric."""
        return self._cost[a, b]


def _cost(way: Way | None) -> float:
    """In classes. One of rate weighs more than one of latency: gradients are large messages."""
    if way is None:
        return 1000.0
    late = math.log(max(way.rtt_s or 0.0, LEAST_RTT) / LEAST_RTT, RTT_CLASS)
    return 100.0 - math.log(max(way.rate, 1.0), RATE_CLASS) + 0.5 * late


def _levels(costs: set[float]) -> dict[float, float]:
    """Each cost as the mean of those that no gap of LEVEL_GAP parts it from: noise has no gaps."""
    groups: list[list[float]] = []
    for cost in sorted(costs):
        if groups and cost - groups[-1][-1] < LEVEL_GAP:
            groups[-1].append(cost)
        else:
            groups.append([cost])
    return {cost: round(sum(group) / len(group), 3) for group in groups for cost in group}


def _clustered(grid: _Grid, names: Sequence[str]) -> list[str]:
    """Join the nearest groups first (mean distance), each time at their nearest ends.

    Among equals the first of hosts.yaml: a network without differences gives its order back.
    """
    groups = [[name] for name in names]
    far = {(i, j): grid.cost(a, b) for (i, a), (j, b) in itertools.combinations(enumerate(names), 2)}
    alive = list(range(len(groups)))
    while len(alive) > 1:
        i, j = min(itertools.combinations(alive, 2), key=lambda pair: (round(far[pair], 3), pair))
        left, right = len(groups[i]), len(groups[j])
        groups[i] = _joined(grid, groups[i], groups[j])
        alive.remove(j)
        for other in alive:
            if other != i:
                mine, theirs = _key(i, other), _key(j, other)
                far[mine] = (far[mine] * left + far[theirs] * right) / (left + right)
    return groups[alive[0]]


def _key(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)


def _joined(grid: _Grid, first: list[str], second: list[str]) -> list[str]:
    options = [(x, y) for x in (first, first[::-1]) for y in (second, second[::-1])]
    x, y = min(options, key=lambda pair: grid.cost(pair[0][-1], pair[1][0]))
    return [*x, *y]


def _better(grid: _Grid, given: list[str], found: list[str]) -> list[str]:
    """`found`, with the better master of its two ends first; `given` where it is as good."""
    if _center(grid, found[-1]) < _center(grid, found[0]):
        found = found[::-1]
    return found if _score_of(grid, found) < _score_of(grid, given) else given


def _score_of(grid: _Grid, order: Sequence[str]) -> Score:
    """The slowest link of the ring, then all of ring and chain (a pipeline is a chain), then the master."""
    ring = [grid.cost(a, b) for a, b in _ring(order)]
    chain = [grid.cost(a, b) for a, b in itertools.pairwise(order)]
    return max(ring), round(sum(ring) + sum(chain), 3), _center(grid, order[0])


def _center(grid: _Grid, name: str) -> float:
    """Mean distance to all others."""
    costs = [cost for (a, _), cost in grid._cost.items() if a == name]
    return round(sum(costs) / len(costs), 3)


def _ring(order: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from itertools.pairwise(order)
    if len(order) > 2:
        yield order[-1], order[0]


def _cut(grid: _Grid, neighbours: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The neighbours with by far the slowest link."""
    costs = {pair: grid.cost(*pair) for pair in neighbours}
    if len(costs) < 2:
        return None
    worst = max(costs, key=lambda pair: costs[pair])
    return worst if costs[worst] - sorted(costs.values())[-2] >= 1 else None


def _reasons(
    ways: _Ways, grid: _Grid, given: list[str], found: list[str], ends: Mapping[str, End]
) -> Iterator[tuple[str, str]]:
    yield from _why_ends(ways, grid, given, ends)
    yield "master", _why_master(grid, found, ends)
    slowest = min(_ring(found), key=lambda pair: grid.rate(*pair))
    told = f"{_some(found)}; the ring's slowest link is {'-'.join(slowest)}, {bits(grid.rate(*slowest))}"
    if found == given:
        yield "order", f"{told}; hosts.yaml's order, no other is better"
    else:
        before = min(_ring(given), key=lambda pair: grid.rate(*pair))
        yield "order", f"{told}; in hosts.yaml's order {'-'.join(before)}, {bits(grid.rate(*before))}"
    cut = _cut(grid, list(itertools.pairwise(found)))
    if cut is not None:
        first = found.index(cut[1])
        sides = f"{_some(found[:first])} | {_some(found[first:])}"
        yield "cut", f"{sides}: {bits(grid.rate(*cut))} between; a pipeline stage should end here"


def _why_ends(
    ways: _Ways, grid: _Grid, names: Sequence[str], ends: Mapping[str, End]
) -> Iterator[tuple[str, str]]:
    by_interface: dict[str, list[str]] = {}
    for name in names:
        if name in ends:
            by_interface.setdefault(ends[name].interface or ends[name].addr, []).append(name)
    for interface, members in by_interface.items():
        links = [grid.rate(a, b) for a in members for b in names if a != b and grid.way(a, b) is not None]
        text = f"{interface} on {_some(members)}"
        if links:
            text += f": at worst {bits(min(links))}"
        yield "interface", text + _others(ways, members, interface)


def _others(ways: _Ways, members: Sequence[str], interface: str) -> str:
    """What the interfaces that were not taken give."""
    told = []
    for other in sorted({end.interface for name in members for end in ways.ends[name]} - {interface, ""}):
        found = [
            w for m in members for e in ways.ends[m] if e.interface == other for w in ways.links_of(m, e)
        ]
        rates = bits(min(way.rate for way in found)) if found else "reaches nobody"
        told.append(f"{other} {rates}")
    return f" ({', '.join(told)})" if told else ""


def _why_master(grid: _Grid, found: Sequence[str], ends: Mapping[str, End]) -> str:
    master = found[0]
    times = sorted(grid.rtt(master, name) for name in found[1:] if grid.way(master, name) is not None)
    if not times:
        return f"{master}: the first; it reaches no other host"
    addr = f" at {ends[master].addr}" if master in ends else ""
    return f"{master}{addr}: first of the order, {times[len(times) // 2] * 1e3:.2f} ms to the others"


def _some(names: Sequence[str]) -> str:
    """All of a few; of many the first and the number: the document has them all."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"


def bits(rate: float) -> str:
    """Bytes per second as people speak of networks: `9.4 Gbit/s`, `640 Mbit/s`, `nothing`."""
    if rate <= 0:
        return "nothing"
    value = rate * 8
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}" if value < 100 * size else f"{value / size:.0f} {unit}"
    return f"{value / 1e3:.0f} kbit/s"
