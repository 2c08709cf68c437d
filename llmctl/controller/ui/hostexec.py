"""`hosts exec` for people: lines with their host in front, and at the end who ended how."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from llmctl.controller.execute.command import Ran
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import duration
from llmctl.controller.ui.hosts import plain_table
from llmctl.controller.ui.plain import plain

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


class Printer:
    """Prints `host: line` on stdout, whole lines only, from any thread."""

    def __init__(self, screen: Screen, hosts: Sequence[str]) -> None:
        self._screen = screen
        self._colour = {host: COLOURS[number % len(COLOURS)] for number, host in enumerate(hosts)}
        self._lock = threading.Lock()

    def line(self, host: str, text: str) -> None:
        with self._lock:
            shown = Text.assemble((f"{host}: ", self._colour[host]), plain(self._screen.clean(text)))
            self._screen.out.print(shown, soft_wrap=True)


def outcome(results: Mapping[str, Ran]) -> RenderableType:
    """`✓ 3 hosts, exit 0` where all went well, else a table with every host."""
    if all(ran.code == 0 for ran in results.values()):
        slowest = max((ran.seconds for ran in results.values()), default=0.0)
        count = len(results)
        return Text(f"✓ {count} host{'s' * (count != 1)}, exit 0 ({duration(slowest)})", style="green")
    table = plain_table("HOST", "EXIT", "TIME", "")
    for name, ran in results.items():
        code = "-" if ran.code is None else str(ran.code)
        why = ran.error.message if ran.error else (ran.signal or "")
        style = "" if ran.code == 0 else "red"
        table.add_row(Text(name), Text(code, style=style), duration(ran.seconds), Text(plain(why)))
    return table
