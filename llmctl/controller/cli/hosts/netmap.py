"""`llmctl hosts map`: how fast is the network between the hosts, over which interface, in which order?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host
    from llmctl.controller.execute.netcache import Remembered
    from llmctl.controller.plan.netchoice import NetChoice
    from llmctl.controller.plan.netmap import NetMap
    from llmctl.controller.plan.verdicts import Verdict
    from llmctl.controller.probe.facts import HostFacts
    from llmctl.errors import LlmctlError

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts map\n\n"
    "    llmctl hosts map --max-age 1d          (measure only what was not measured within a day)\n\n"
    "    llmctl hosts map --seconds 2 -o json   (longer, on links of 100 Gbit/s)"
)


def register(app: typer.Typer) -> None:
    app.command("map", epilog=EPILOG)(map_)


def map_(
    max_age: Annotated[
        str | None,
        typer.Option("--max-age", metavar="AGE", help="Take what was measured within AGE: 12h, 7d."),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.05, max=60, help="Of sending, per way and direction.")
    ] = 0.4,
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Measure latency and bandwidth between all pairs, over every interface; choose interfaces and order.

    `train` and `plan` go by it while it is fresh. No host is in two measurements at once. Exit 10 where a
    pair of hosts can't connect in both directions.
    """
    from llmctl.controller.cli.hosts.choose import chosen_hosts
    from llmctl.controller.cli.hosts.clean import parse_age
    from llmctl.controller.cli.session import Session
    from llmctl.errors import ConfigError, HostErrors

    session = Session(hosts=hosts, output=checked_output(output))
    age = parse_age(max_age, "--max-age") if max_age is not None else 0.0
    try:
        chosen = chosen_hosts(session, pool, limit)
        if len(chosen) < 2:
            raise ConfigError("a network needs two hosts", hint="--pool or --limit: choose more than one")
        errors = _map(session, chosen, seconds, age)
    finally:
        session.close()
    if errors:
        raise HostErrors(errors)


def _map(session: Session, chosen: tuple[Host, ...], seconds: float, max_age_s: float) -> list[LlmctlError]:
    """Measure, choose, show; what is wrong."""
    from llmctl.controller.plan.netchoice import choose
    from llmctl.controller.plan.netmap import NetMap
    from llmctl.controller.plan.netverdicts import network_verdicts
    from llmctl.errors import PreflightError

    facts, errors = _facts(session, chosen)
    here = tuple(host for host in chosen if host.name in facts)
    netmap, failed = NetMap(hosts=(), links=()), dict[str, "LlmctlError"]()
    if len(here) > 1:
        netmap, failed = _measure(session, here, facts, seconds, max_age_s)
    errors += failed.values()
    choice = choose(netmap, netmap.hosts) if len(netmap.hosts) > 1 else None
    verdicts = network_verdicts(netmap, choice) if choice is not None else []
    _show(session, netmap, choice, verdicts)
    return errors + [
        PreflightError(one.message, host=one.host, stage="map", hint=one.hint)
        for one in verdicts
        if one.level == "unfit"
    ]


def _facts(session: Session, chosen: tuple[Host, ...]) -> tuple[dict[str, HostFacts], list[LlmctlError]]:
    """Of the hosts that answered, each still the machine that was trusted; and why others did not."""
    from llmctl.controller.execute.check import Checked, check_hosts
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.ui.hostcheck import Board
    from llmctl.errors import LlmctlError

    connections = session.connect(chosen)
    with Board(session.screen, [host.name for host in chosen]) as board:
        results = check_hosts(chosen, connections, Recogniser(session.book), answered=board.answered)
    facts = {name: result.facts for name, result in results.items() if isinstance(result, Checked)}
    return facts, [result for result in results.values() if isinstance(result, LlmctlError)]


def _measure(
    session: Session,
    hosts: tuple[Host, ...],
    facts: dict[str, HostFacts],
    seconds: float,
    max_age_s: float,
) -> tuple[NetMap, dict[str, LlmctlError]]:
    """The map of the hosts that stayed to the end, and why others did not."""
    from llmctl.controller.execute.netmap import measure_links, pairs_of
    from llmctl.controller.plan.netmap import NetMap
    from llmctl.controller.ui.stages import Stages

    memory = _memory(session, hosts, facts)
    known = memory.links(max_age_s) if max_age_s else {}
    wanted = pairs_of([host.name for host in hosts]) - known.keys()
    doing = f"{len(wanted)} of {len(wanted) + len(known)} pairs"
    with Stages(session.screen).stage("map", f"measuring {doing}") as stage:
        found = measure_links(
            hosts,
            facts,
            session.connect(hosts),
            session.archive,
            wanted=wanted,
            now=memory.now,
            seconds=seconds,
            measured=lambda _link: stage.count(1, "measured"),
        )
        count = len(found.links)
        stage.text = f"{count} pair{'s' * (count != 1)} measured" + (f", {len(known)} known" if known else "")
    memory.remember(found.links)
    names = tuple(host.name for host in hosts if host.name not in found.failed)
    links = tuple(link for link in (*known.values(), *found.links) if {link.a, link.b} <= set(names))
    return NetMap(hosts=names, links=links, ports=found.ports), found.failed


def _memory(session: Session, hosts: tuple[Host, ...], facts: dict[str, HostFacts]) -> Remembered:
    from llmctl.controller.execute.netcache import Remembered, identities
    from llmctl.controller.ledger.netbook import NetBook

    book = NetBook(session.settings.state_dir, warn=session.screen.warn)
    ids = identities(hosts, facts, session.book.pins)
    return Remembered(book=book, hosts=hosts, facts=facts, ids=ids, now=time.time())


def _show(session: Session, netmap: NetMap, choice: NetChoice | None, verdicts: list[Verdict]) -> None:
    from llmctl.controller.ui.hostmap import show_map
    from llmctl.wire import codec

    if session.json:
        session.screen.document("hosts-map", _document(netmap, choice, codec.encode(verdicts)))
    elif choice is not None:
        show_map(session.screen, netmap, choice, verdicts, time.time())


def _document(netmap: NetMap, choice: NetChoice | None, verdicts: Any) -> dict[str, Any]:
    from llmctl.wire import codec

    links = [{**codec.encode(link), "ways": [_way(way) for way in link.ways]} for link in netmap.links]
    picked = None
    if choice is not None:
        picked = {
            "order": list(choice.order),
            "master": choice.order[0],
            "interfaces": {name: end.interface for name, end in choice.ends.items()},
            "addresses": {name: end.addr for name, end in choice.ends.items()},
            "bytes_per_s": choice.rate,
            "rtt_s": choice.rtt,
            "cut": list(choice.cut) if choice.cut else None,
            "why": [f"{what}: {text}" for what, text in choice.why],
        }
    return {"hosts": list(netmap.hosts), "links": links, "choice": picked, "verdicts": verdicts}


def _way(way: Any) -> dict[str, Any]:
    from llmctl.wire import codec

    return {**codec.encode(way), "works": way.works}
