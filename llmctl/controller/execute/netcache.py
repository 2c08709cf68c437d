"""The network map of some hosts, from what was measured before and, where asked for, from measuring now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from llmctl.controller.config.types import Host
from llmctl.controller.execute.netmap import Pair
from llmctl.controller.ledger.hostbook import Pin
from llmctl.controller.ledger.netbook import NetBook
from llmctl.controller.plan.netmap import Link, NetMap, current, ends
from llmctl.controller.probe.facts import HostFacts
from llmctl.errors import IntegrityError
from llmctl.wire import codec

MAX_AGE_S = 7 * 86400.0
"""How long `train` and `plan` go by a map, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What the book knows about the links between some hosts. `now`: Unix time.

    Attributes:
        ids: who each host is, by its name here.
    """

    book: NetBook
    hosts: tuple[Host, ...]
    facts: Mapping[str, HostFacts]
    ids: Mapping[str, str]
    now: float

    def links(self, max_age_s: float) -> dict[Pair, Link]:
        """Those not older than that whose addresses are still the hosts' own, by pair of names."""
        names = {identity: name for name, identity in self.ids.items()}
        hosts = {host.name: host for host in self.hosts}
        found = {}
        for pair, document in self.book.links().items():
            if not pair <= names.keys() or self.now - document["at"] > max_age_s:
                continue
            with suppress(IntegrityError):  # of a newer llmctl that writes otherwise: as if unknown
                link = codec.decode(Link, document)
                link = replace(link, a=names[link.a], b=names[link.b])
                a, b = hosts[link.a], hosts[link.b]
                known = current(
                    link,
                    ends(a, self.facts[a.name]),
                    ends(b, self.facts[b.name]),
                    both_local=a.is_local and b.is_local,
                )
                if known is not None:
                    found[frozenset((a.name, b.name))] = known
        return found

    def whole(self, max_age_s: float) -> NetMap | None:
        """The map, where every pair is known."""
        names = [host.name for host in self.hosts]
        links = self.links(max_age_s)
        if len(names) < 2 or len(links) < len(names) * (len(names) - 1) // 2:
            return None
        return NetMap(hosts=tuple(names), links=tuple(links.values()))

    def remember(self, links: Iterable[Link]) -> None:
        """Write down what was measured."""
        documents = {}
        for link in links:
            mine = replace(link, a=self.ids[link.a], b=self.ids[link.b])
            documents[frozenset((mine.a, mine.b))] = codec.encode(mine)
        if documents:
            self.book.remember(documents, now=self.now)


def identities(
    hosts: Sequence[Host], facts: Mapping[str, HostFacts], pins: Callable[[], Mapping[str, Pin]]
) -> dict[str, str]:
    """Who each host is: its host key's last characters and its machine-id. Its name tells twins apart."""
    known = pins()
    found: dict[str, str] = {}
    for host in hosts:
        pin = known.get(host.name)
        key = pin.key.split()[-1][-24:] if pin is not None else "local"
        identity = f"{key}/{facts[host.name].more.machine_id or ''}"
        twin = host.is_local or identity in found.values()
        found[host.name] = f"{identity}/{host.name}" if twin else identity
    return found
