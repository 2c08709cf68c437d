"""What a network map says against hosts: who takes no connection from whom, which link is slow. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from llmctl.controller.plan.netchoice import NetChoice, bits
from llmctl.controller.plan.netmap import Link, NetMap, Way
from llmctl.controller.plan.verdicts import Level, Verdict

SLOW = 1 / 3
"""Of the median of the hosts' best links: a link below it is worth a word."""

USUAL_PORTS = (32768, 60999)

WHY = {
    "refused": "refuses the connection",
    "silent": "gives no answer",
    "unreachable": "can't be reached",
    "stranger": "is answered by another machine or program",
    "broken": "was reached, but the connection broke while data was sent",
}


def network_verdicts(netmap: NetMap, choice: NetChoice) -> list[Verdict]:
    """Findings about the interfaces that were chosen, told of the host that has to be mended."""
    return [*_unreachable(netmap, choice), *_slow(netmap, choice)]


def _unreachable(netmap: NetMap, choice: NetChoice) -> Iterator[Verdict]:
    """A pair without a working way: told by the way that comes nearest, each direction on its own."""
    told: set[tuple[str, str]] = set()
    for link in netmap.links:
        if any(way.works for way in link.ways):
            continue
        if not link.ways:
            yield _no_way(link)
            continue
        way = min(link.ways, key=lambda way: bool(way.no_ab) + bool(way.no_ba))
        sides = ((link.a, link.b, way), (link.b, link.a, way.reversed()))
        for mine, peer, seen in sides:
            if seen.no_ab and (peer, mine) not in told:
                told.add((peer, mine))
                yield _closed(peer, mine, seen, netmap.ports.get(peer, USUAL_PORTS))
    yield from _not_over_choice(netmap, choice)


def _no_way(link: Link) -> Verdict:
    return Verdict(
        host=link.b,
        about="network",
        message=f"has no address that {link.a} could use: only loopback, or the same as {link.a}'s",
        hint=f"set `internal_addr:` and `interface:` for {link.b} in hosts.yaml",
    )


def _closed(host: str, peer: str, way: Way, ports: tuple[int, int]) -> Verdict:
    """`host` takes no connection from `peer` (the way's `a`)."""
    seen = WHY.get(way.no_ab, way.no_ab)
    over = f" over {way.b.interface}" if way.b.interface else ""
    span = f"{ports[0]}-{ports[1]}"
    where = f"{way.b.addr}:{way.port_b}{over} {seen}"
    if way.ssh_ab:
        where += ", though its SSH port answers: a packet filter"
        source = way.a.addr
        hint = (
            f"on {host}: let TCP ports {span} in from {source}, e.g. nft insert rule inet filter input"
            f" ip saddr {source} tcp dport {span} accept; or ufw allow from {source}"
        )
    elif way.ssh_ab is False and way.no_ab in ("silent", "unreachable"):
        where += ", nor does its SSH port: no route between them, or one filter for everything"
        hint = (
            f"set `internal_addr:` for {host} to an address that {peer} reaches, or open the network for both"
        )
    else:
        hint = f"set `interface:` or `internal_addr:` for {host} in hosts.yaml, or open ports {span} there"
    return Verdict(
        host=host,
        about="firewall",
        message=f"{host} accepts no connection from {peer} on ports {span} ({where})",
        hint=hint,
    )


def _not_over_choice(netmap: NetMap, choice: NetChoice) -> Iterator[Verdict]:
    """Pairs that reach each other, but by no interface that suits all the others too."""
    for a, b in choice.blocked:
        link = netmap.between(a, b)
        if link is None or not any(way.works for way in link.ways):
            continue
        used = " and ".join(
            f"{name}'s {choice.ends[name].interface}" for name in (a, b) if name in choice.ends
        )
        yield Verdict(
            host=b,
            about="network",
            message=f"reaches {a}, but not over the interfaces that reach the others ({used})",
            hint="put hosts without a network in common into pools of their own, or set `interface:`",
        )


def _slow(netmap: NetMap, choice: NetChoice) -> Iterator[Verdict]:
    """A host with slow links only is told once; else links, unless most are slow: that is the network."""
    rates = _rates(netmap, choice)
    if len(rates) < 3:
        return
    best = [max((rate for pair, rate in rates.items() if name in pair), default=0.0) for name in netmap.hosts]
    median = statistics.median(best)  # of links one slow host among three has two
    slow = {pair: rate for pair, rate in rates.items() if rate < SLOW * median}
    guilty = set()
    for name in netmap.hosts:
        mine = [pair for pair in rates if name in pair]
        if len(mine) > 1 and all(pair in slow for pair in mine):
            guilty.add(name)
            yield Verdict(
                host=name,
                about="network",
                level=Level.WARN,
                message=f"all its links are slow: {bits(max(rates[pair] for pair in mine))} at best;"
                f" usual in this pool: {bits(median)}",
                hint=f"look at cable, speed and duplex: ethtool {choice.ends[name].interface} on {name}",
            )
    left = sorted((rate, pair) for pair, rate in slow.items() if not guilty & set(pair))
    if left and len(left) <= len(rates) / 2:
        rate, (a, b) = left[0]
        more = f"and {len(left) - 1} more like it" if len(left) > 1 else ""
        yield Verdict(
            host=b,
            about="network",
            level=Level.WARN,
            message=f"its link to {a} is slow: {bits(rate)} {more}".rstrip()
            + f"; usual in this pool: {bits(median)}",
            hint="look at the switches between them; `order` and `cut` keep what is sent most off slow links",
        )


def _rates(netmap: NetMap, choice: NetChoice) -> Mapping[tuple[str, str], float]:
    found = {}
    for link in netmap.links:
        ends = choice.ends.get(link.a), choice.ends.get(link.b)
        for way in link.ways:
            if (way.a, way.b) == ends and way.works and way.rate:
                found[link.a, link.b] = way.rate
    return found
