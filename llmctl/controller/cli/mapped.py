"""What `train` and `plan` take from the last `hosts map`, where it is fresh and still true of these hosts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host
    from llmctl.controller.plan.machines import Given
    from llmctl.controller.plan.netchoice import NetChoice
    from llmctl.controller.probe.facts import HostFacts

USUAL_AGE = "7d"


@dataclass(frozen=True, slots=True, kw_only=True)
class ByMap:
    """The hosts as the map advises: in rank order, with interface and address.

    Attributes:
        choice: None: there is no map, or it is not used.
        text: one line for people: what was chosen, and how old the map is.
        warning: why a map was not used though it is there.
    """

    hosts: tuple[Host, ...]
    choice: NetChoice | None = None
    text: str = ""
    warning: str = ""


def by_map(
    session: Session, hosts: tuple[Host, ...], facts: Mapping[str, HostFacts], max_age_s: float
) -> ByMap:
    """The advice for these hosts; they come back as they are where no whole map is fresh enough."""
    from llmctl.controller.execute.netcache import Remembered, identities
    from llmctl.controller.ledger.netbook import NetBook
    from llmctl.controller.plan.netchoice import applied, choose, summary
    from llmctl.controller.ui.format import age

    if len(hosts) < 2 or max_age_s <= 0:
        return ByMap(hosts=hosts)
    book = NetBook(session.settings.state_dir, warn=session.screen.warn)
    if not book.links():
        return ByMap(hosts=hosts)
    ids = identities(hosts, facts, session.book.pins)
    memory = Remembered(book=book, hosts=hosts, facts=facts, ids=ids, now=time.time())
    found = memory.whole(max_age_s)
    if found is None:
        return ByMap(hosts=hosts)
    choice = choose(found, [host.name for host in hosts])
    old = age(memory.now - found.oldest)
    if choice.blocked:
        pair = " and ".join(choice.blocked[0])
        warning = f"the map of {old} ago is not used: it has no way between {pair}; see `llmctl hosts map`"
        return ByMap(hosts=hosts, warning=warning)
    text = f"{summary(choice, [host.name for host in hosts])} · map of {old} ago"
    return ByMap(hosts=applied(hosts, choice), choice=choice, text=text)


def with_links(given: Given, found: ByMap) -> Given:
    """`Given` of the planner with the slowest ring link, unless a person gave it."""
    if found.choice is None:
        return given
    return replace(
        given,
        between=given.between or found.choice.rate or None,
        latency=given.latency if given.latency is not None else found.choice.rtt or None,
        measured="" if given.between else found.text,
    )
