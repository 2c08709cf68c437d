"""`hosts map` for people: every way between two hosts, then what was chosen and why."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llmctl.controller.plan.netchoice import NetChoice, bits
from llmctl.controller.plan.netmap import NetMap, Way
from llmctl.controller.plan.verdicts import Level, Verdict
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import age
from llmctl.controller.ui.hosts import plain_table
from llmctl.controller.ui.plain import plain

MOST_ROWS = 40
WORDS = {
    "refused": "refused",
    "silent": "no answer",
    "unreachable": "unreachable",
    "stranger": "not the host",
    "broken": "broke off",
}


def show_map(
    screen: Screen, netmap: NetMap, choice: NetChoice, verdicts: Sequence[Verdict], now: float
) -> None:
    """The ways, the slowest first where there are many; the choice; the warnings. `now`: Unix time."""
    screen.out.print(ways_table(netmap, choice, now))
    rows = sum(max(1, len(link.ways)) for link in netmap.links)
    if rows > MOST_ROWS:
        screen.out.print(Text(f"and {rows - MOST_ROWS} more, faster ones; all of them: -o json", style="dim"))
    for what, text in choice.why:
        screen.out.print(Text.assemble((f"{what:<10} ", "bold"), plain(text)))
    for verdict in verdicts:
        if verdict.level is Level.WARN:
            screen.out.print(Text.assemble(("! ", "yellow"), plain(f"{verdict.host}: {verdict.message}")))
            screen.out.print(Text(plain(f"    {verdict.hint}"), style="cyan"))


def ways_table(netmap: NetMap, choice: NetChoice, now: float) -> Table:
    """One line per way; those in use are marked."""
    table = plain_table("", "FROM", "TO", "OVER", "RTT", "THERE", "BACK", "AGE")
    ways = [(link, way) for link in netmap.links for way in link.ways]
    if len(ways) > MOST_ROWS:
        ways.sort(key=lambda pair: pair[1].rate)
    for link in netmap.links:
        if not link.ways:
            table.add_row("", link.a, link.b, "no address in common", "-", "-", "-", age(now - link.at))
    for link, way in ways[:MOST_ROWS]:
        used = (choice.ends.get(link.a), choice.ends.get(link.b)) == (way.a, way.b)
        cells = ["*" if used else "", link.a, link.b, _over(way), *_numbers(way), age(now - link.at)]
        table.add_row(*(Text(plain(cell)) for cell in cells), style="" if way.works else "red")
    return table


def _over(way: Way) -> str:
    first, second = (end.interface or end.addr for end in (way.a, way.b))
    return first if first == second else f"{first} - {second}"


def _numbers(way: Way) -> list[str]:
    rtt = f"{way.rtt_s * 1e3:.2f} ms" if way.rtt_s is not None else "-"
    there = WORDS.get(way.no_ab) or bits(way.there or 0.0)
    back = WORDS.get(way.no_ba) or bits(way.back or 0.0)
    return [rtt, there, back]
