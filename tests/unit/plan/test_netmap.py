"""From measured links to rounds, interfaces, rank order, master and what is told about it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.controller.plan.netchoice import NetChoice, applied, bits, choose, summary
from llmctl.controller.plan.netmap import (
    End,
    Link,
    NetMap,
    Way,
    candidates,
    current,
    ends,
    rounds,
    targets,
)
from llmctl.controller.plan.netverdicts import network_verdicts
from llmctl.controller.plan.verdicts import Level
from tests.unit.controller.builders import facts, host

GBIT = 1e9 / 8
ETH0, ETH1 = (
    (lambda n: End(addr=f"10.0.0.{n}", interface="eth0", prefix=24)),
    (lambda n: End(addr=f"10.1.0.{n}", interface="eth1", prefix=24)),
)


def netmap(
    names: Sequence[str],
    rate: Callable[[str, str], float],
    *,
    second: Callable[[str, str], float] | None = None,
    rtt: Callable[[str, str], float] = lambda _a, _b: 1e-4,
) -> NetMap:
    """Every pair over eth0, and with `second` over eth1 too; rates in bytes per second both ways."""
    number = {name: place + 1 for place, name in enumerate(sorted(names))}
    links = []
    for a, b in itertools.combinations(names, 2):
        ways = [_way(ETH0(number[a]), ETH0(number[b]), rate(a, b), rtt(a, b))]
        if second is not None:
            ways.append(_way(ETH1(number[a]), ETH1(number[b]), second(a, b), rtt(a, b)))
        links.append(Link(a=a, b=b, at=1.0, ways=tuple(ways)))
    return NetMap(hosts=tuple(names), links=tuple(links))


def _way(a: End, b: End, rate: float, rtt: float) -> Way:
    return Way(a=a, b=b, rtt_s=rtt, there=rate, back=rate, port_a=40001, port_b=40002)


def broken(found: NetMap, a: str, b: str, **how: object) -> NetMap:
    """The same map, where `a` can't connect to `b`."""
    links = []
    for link in found.links:
        if {link.a, link.b} == {a, b}:
            seen = link.seen_from(a)
            ways = tuple(
                Way(a=way.a, b=way.b, rtt_s=way.rtt_s, port_a=1, port_b=40002, **{"no_ab": "silent", **how})  # type: ignore[arg-type]
                for way in seen.ways
            )
            links.append(Link(a=a, b=b, at=1.0, ways=ways))
        else:
            links.append(link)
    return NetMap(hosts=found.hosts, links=tuple(links), ports={b: (32768, 60999)})


@given(st.integers(2, 41))
def test_every_pair_plays_once_and_no_host_twice_in_a_round(count: int) -> None:
    """A round-robin tournament: n - 1 rounds (n for odd n), n / 2 pairs at once."""
    names = [f"h{number}" for number in range(count)]
    played = list(rounds(names))
    for pairs in played:
        busy = [name for pair in pairs for name in pair]
        assert len(busy) == len(set(busy))
    every = [frozenset(pair) for pairs in played for pair in pairs]
    assert len(every) == len(set(every)) == count * (count - 1) // 2
    assert len(played) == count - 1 + count % 2


def test_everybody_asks_and_is_asked() -> None:
    """No host is the first of all its pairs: each has to accept and to make connections that carry data."""
    firsts = [pair[0] for pairs in rounds(list("abcdefgh")) for pair in pairs]
    assert set(firsts) == set("abcdefgh")
    assert max(firsts.count(name) for name in firsts) < 7


@settings(max_examples=40)
@given(st.integers(2, 12), st.floats(1e6, 1e11), st.randoms(use_true_random=False))
def test_a_network_without_differences_keeps_the_order_given(
    count: int, usual: float, rng: random.Random
) -> None:
    """What a second measurement could turn around reorders nobody."""
    names = [f"h{number}" for number in range(count)]
    rng.shuffle(names)
    found = choose(netmap(names, lambda _a, _b: usual * rng.uniform(0.9, 1.1)), names)
    assert list(found.order) == names
    assert found.cut is None


@settings(max_examples=30)
@given(st.permutations(list("abcdefgh")))
def test_racks_stay_together_and_the_cut_lies_between_them(names: list[str]) -> None:
    """Whatever hosts.yaml's order: two halves with fast links inside, and one slow pair of neighbours."""
    slow = netmap(names, lambda a, b: GBIT if (a in "abcd") == (b in "abcd") else GBIT / 10)
    found = choose(slow, names)
    assert {frozenset(found.order[:4]), frozenset(found.order[4:])} == {frozenset("abcd"), frozenset("efgh")}
    assert found.cut == (found.order[3], found.order[4])
    assert any(what == "cut" for what, _ in found.why)
    assert bits(found.rate) == "100 Mbit/s"


def test_near_hosts_become_neighbours() -> None:
    """Equal rates: round trips decide, so that small messages go short ways."""
    place = {"a": 0, "b": 10, "c": 1, "d": 11}
    found = choose(
        netmap(list("abcd"), lambda _a, _b: GBIT, rtt=lambda a, b: 1e-4 * (1 + abs(place[a] - place[b]))),
        list("abcd"),
    )
    assert {frozenset(found.order[:2]), frozenset(found.order[2:])} == {frozenset("ac"), frozenset("bd")}


def test_a_slow_host_comes_last_and_is_no_master() -> None:
    """Of the order's two ends the better connected one is the master's."""
    found = choose(netmap(list("abc"), lambda a, b: GBIT / 20 if "a" in (a, b) else GBIT), list("abc"))
    assert found.order[-1] == "a"


@given(st.permutations(list("abc")))
def test_the_faster_network_is_taken_on_every_host(names: list[str]) -> None:
    """And the reasons say what the other one would give."""
    found = choose(netmap(names, lambda _a, _b: GBIT, second=lambda _a, _b: 10 * GBIT), names)
    assert {end.interface for end in found.ends.values()} == {"eth1"}
    (why,) = [text for what, text in found.why if what == "interface"]
    assert "10.0 Gbit/s" in why
    assert "eth0 1.0 Gbit/s" in why


def test_one_fast_link_does_not_make_a_network() -> None:
    """eth1 is faster between a and b only; c is not there: the slowest link counts."""
    whole = netmap(list("abc"), lambda _a, _b: GBIT, second=lambda _a, _b: 10 * GBIT)
    links = tuple(
        link if "c" not in (link.a, link.b) else Link(a=link.a, b=link.b, at=1.0, ways=link.ways[:1])
        for link in whole.links
    )
    found = choose(NetMap(hosts=whole.hosts, links=links), list("abc"))
    assert {end.interface for end in found.ends.values()} == {"eth0"}
    assert not found.blocked


def test_the_choice_becomes_order_interface_and_address_of_the_hosts() -> None:
    """What hosts.yaml itself says of a host stays."""
    found = choose(netmap(list("ab"), lambda _a, _b: GBIT), list("ab"))
    given_hosts = [host("a", "1.2.3.4"), host("b", "1.2.3.5", interface="ib0", internal_addr="10.9.9.9")]
    a, b = applied(given_hosts, found)
    assert (a.interface, a.internal_addr) == ("eth0", "10.0.0.1")
    assert (b.interface, b.internal_addr) == ("ib0", "10.9.9.9")
    assert summary(found, ["a", "b"]) == "eth0 · 1.0 Gbit/s at worst · order of hosts.yaml"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"ssh_ab": True}, "though its SSH port answers: a packet filter"),
        ({"ssh_ab": False}, "nor does its SSH port"),
        ({"no_ab": "refused"}, "refuses the connection"),
    ],
)
def test_a_closed_host_is_told_with_ports_and_reason(how: dict[str, object], words: str) -> None:
    """One verdict, about the host that has to be opened; the pair counts as blocked."""
    found = broken(netmap(list("ab"), lambda _a, _b: GBIT), "a", "b", **how)
    choice = choose(found, list("ab"))
    assert choice.blocked == (("a", "b"),)
    (verdict,) = network_verdicts(found, choice)
    assert verdict.host == "b"
    assert verdict.message.startswith("b accepts no connection from a on ports 32768-60999")
    assert words in verdict.message
    assert verdict.level is Level.UNFIT


def test_a_slow_host_is_told_once_and_slow_links_together() -> None:
    """Not one line per link: 100 hosts have 4950."""
    one = netmap(list("abcd"), lambda a, b: GBIT / 10 if "d" in (a, b) else GBIT)
    (verdict,) = network_verdicts(one, choose(one, list("abcd")))
    assert verdict.host == "d"
    assert "all its links are slow: 100 Mbit/s at best" in verdict.message
    two = netmap(list("abcd"), lambda a, b: GBIT / 10 if {a, b} in ({"a", "b"}, {"c", "d"}) else GBIT)
    (verdict,) = network_verdicts(two, choose(two, list("abcd")))
    assert "and 1 more like it" in verdict.message
    racks = netmap(list("abcd"), lambda a, b: GBIT if {a, b} in ({"a", "b"}, {"c", "d"}) else GBIT / 10)
    assert network_verdicts(racks, choose(racks, list("abcd"))) == []  # `cut` says it


def test_ways_come_from_the_hosts_own_addresses() -> None:
    """Loopback and what both have (docker0) lead nowhere; a shared network comes before a router."""
    a = ends(
        host("a", "x"),
        facts("a", ("lo", "127.0.0.1", 8), ("eth0", "10.0.0.1", 24), ("docker0", "172.17.0.1", 16)),
    )
    b = ends(
        host("b", "x"),
        facts("b", ("eth0", "10.0.0.2", 24), ("ib0", "10.7.0.2", 24), ("docker0", "172.17.0.1", 16)),
    )
    found = candidates(a, b)
    assert [(x.addr, y.addr, spare) for x, y, spare in found] == [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "10.7.0.2", True),
    ]
    assert [(one.addr, one.source, one.spare) for one in targets(found)] == [
        ("10.0.0.2", "10.0.0.1", False),
        ("10.7.0.2", "", True),
    ]


def test_hosts_yaml_narrows_the_ways() -> None:
    """`interface` and `internal_addr` are orders; an address of a NAT is on no interface and still tried."""
    known = facts("a", ("eth0", "10.0.0.1", 24), ("eth1", "10.1.0.1", 24))
    assert [end.addr for end in ends(host("a", "x", interface="eth1"), known)] == ["10.1.0.1"]
    (outside,) = ends(host("a", "x", internal_addr="192.0.2.7"), known)
    assert (outside.addr, outside.interface) == ("192.0.2.7", "")
    peer = ends(host("b", "x"), facts("b", ("eth0", "10.0.0.2", 24)))
    assert [(y.addr, spare) for _, y, spare in candidates(peer, [outside])] == [("192.0.2.7", False)]


def test_a_remembered_link_counts_while_the_hosts_have_its_addresses() -> None:
    """A changed address makes it stale, a new interface too; one that is gone takes its own way along."""
    link = netmap(list("ab"), lambda _a, _b: GBIT, second=lambda _a, _b: GBIT).links[0]
    a, b = [ETH0(1), ETH1(1)], [ETH0(2), ETH1(2)]
    assert current(link, a, b) == link
    less = current(link, a[:1], b)
    assert less is not None
    assert len(less.ways) == 1
    assert current(link, [ETH0(9), ETH1(1)], b) is None
    assert (
        current(
            link,
            [*a, End(addr="10.2.0.1", interface="ib0", prefix=24)],
            [*b, End(addr="10.2.0.2", interface="ib0", prefix=24)],
        )
        is None
    )


def test_a_hundred_hosts_are_ordered_at_once() -> None:
    """Five racks of twenty, shuffled: every rack is one piece of the order."""
    names = [f"h{number:02d}" for number in range(100)]
    random.Random(1).shuffle(names)  # noqa: S311

    def rack(name: str) -> int:
        return int(name[1:]) // 20

    found: NetChoice = choose(netmap(names, lambda a, b: GBIT if rack(a) == rack(b) else GBIT / 8), names)
    pieces = [key for key, _ in itertools.groupby(found.order, key=rack)]
    assert len(pieces) == 5
