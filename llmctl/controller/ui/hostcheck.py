"""`hosts check` for people: a table that fills while hosts answer, then what is wrong and what to do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmctl.controller.execute.check import Checked
from llmctl.controller.plan.verdicts import Level, Verdict
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.ui.columns import GAP, fitting, needed
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import names, size
from llmctl.controller.ui.plain import plain
from llmctl.errors import LlmctlError

TITLES = ("HOST", "VERDICT", "SYSTEM", "CPU", "MEMORY", "DISK FREE", "PYTHON", "TORCH", "CLOCK", "GPUS")
FIRST_TO_GO = ("SYSTEM", "CLOCK", "MEMORY", "CPU", "PYTHON", "DISK FREE", "TORCH", "GPUS")
STYLE = {"ok": "green", "unfit": "bold red", "no contact": "red", "asking": "dim"}
BAD = ("unfit", "no contact", "drained")
ROOM_BELOW = 4
"""Lines that a live table leaves free: its title, the line of progress, the prompt."""

Result = Checked | LlmctlError


class Board:
    """The live table while hosts answer; on no terminal it shows nothing. Use as a context manager."""

    def __init__(self, screen: Screen, hosts: Sequence[str]) -> None:
        self._screen = screen
        self._results: dict[str, Result | None] = dict.fromkeys(hosts)
        self._lock = threading.Lock()
        self._live = Live(console=screen.err, transient=True, auto_refresh=False) if screen.live else None

    def answered(self, name: str, result: Result) -> None:
        """One host's result; any thread may call."""
        with self._lock:
            self._results[name] = result
            if self._live is not None:
                self._live.update(self._picture(), refresh=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._live.update(self._picture(), refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _picture(self) -> RenderableType:
        """As many hosts as the terminal has lines; where there are more, those that are fine go first."""
        console = self._screen.err
        room = max(1, console.height - ROOM_BELOW)
        left_out = len(self._results) - room
        fine = [name for name, result in self._results.items() if verdict_word(result) == "ok"]
        hidden = set(fine[: max(0, left_out)])
        kept = [name for name in self._results if name not in hidden][:room]
        shown = {name: self._results[name] for name in kept}
        return Group(results_table(shown, console.width), progress(self._results))


def progress(results: Mapping[str, Result | None]) -> Text:
    """`57 of 100 answered · 2 unfit · waiting for c, d`."""
    waiting = [name for name, result in results.items() if result is None]
    words = [verdict_word(result) for result in results.values()]
    bad = sum(word in BAD for word in words)
    parts = [f"{len(results) - len(waiting)} of {len(results)} answered"]
    parts += [f"{bad} unfit"] if bad else []
    parts += [f"waiting for {names(waiting)}"] if waiting else []
    return Text(" · ".join(parts), style="dim")


def show_results(screen: Screen, results: Mapping[str, Result]) -> None:
    """The table and the warnings on stdout; what makes a host unfit is the caller's error to raise."""
    screen.out.print(results_table(dict(results), screen.out.width))
    for line in warning_lines(results):
        screen.out.print(line)


def results_table(results: Mapping[str, Result | None], width: int) -> Table:
    """One line per host: verdict and facts; a narrow terminal gets fewer facts."""
    rows = [_row(name, result) for name, result in results.items()]
    widths = needed(TITLES, rows)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    shown = fitting(widths, width, FIRST_TO_GO)
    for title in shown:
        table.add_column(title, no_wrap=True, overflow="ignore", min_width=min(widths[title], width))
    for row in rows:
        style = STYLE.get(row["VERDICT"], "yellow")
        table.add_row(*(Text(row[t], style=style if t == "VERDICT" else "") for t in shown))
    return table


def warning_lines(results: Mapping[str, Result]) -> list[Text]:
    """Each warning once, with all the hosts that it is about, and what to do; then what has changed."""
    found: dict[str, list[Verdict]] = {}
    lines: list[Text] = []
    for result in results.values():
        if isinstance(result, Checked):
            for verdict in result.verdicts:
                if verdict.level is Level.WARN:
                    found.setdefault(verdict.message, []).append(verdict)
    for message, verdicts in found.items():
        hosts = names(list(dict.fromkeys(verdict.host for verdict in verdicts)))
        lines.append(Text.assemble(("! ", "yellow"), plain(f"{hosts}: {message}")))
        lines.append(Text(plain(f"    {verdicts[0].hint}"), style="cyan"))
    for name, result in results.items():
        if isinstance(result, Checked):
            lines += [Text.assemble(("! ", "yellow"), plain(f"{name} {note}")) for note in result.notes]
    return lines


def verdict_word(result: Result | None) -> str:
    """`ok`, `2 warnings`, `unfit`, `no contact`, or `asking` for a host that has not answered."""
    if result is None:
        return "asking"
    if isinstance(result, LlmctlError):
        return "no contact"
    if result.problems:
        return "drained" if all(v.about == "drained" for v in _unfit(result)) else "unfit"
    warnings = len(result.verdicts)
    return f"{warnings} warning{'s' * (warnings != 1)}" if warnings else "ok"


def _unfit(result: Checked) -> list[Verdict]:
    return [verdict for verdict in result.verdicts if verdict.level is Level.UNFIT]


def _row(name: str, result: Result | None) -> dict[str, str]:
    facts = _facts(result.facts) if isinstance(result, Checked) else {}
    row = {"HOST": name, "VERDICT": verdict_word(result), **facts}
    if isinstance(result, LlmctlError):
        row["SYSTEM"] = "see below"
    return {title: plain(row.get(title, "")) for title in TITLES}


def _facts(facts: HostFacts) -> dict[str, str]:
    python, cpu = facts.python, facts.more.cpu
    cores = f"{cpu.physical}c/{facts.cores}t" if cpu.physical and cpu.physical != facts.cores else None
    return {
        "SYSTEM": facts.system,
        "CPU": cores or str(facts.cores),
        "MEMORY": size(facts.memory),
        "DISK FREE": size(facts.disk_free),
        "PYTHON": python.version if python else "-",
        "TORCH": (python.torch or "none") if python else "-",
        "CLOCK": _clock(facts),
        "GPUS": _gpus(facts),
    }


def _gpus(facts: HostFacts) -> str:
    models = Counter(gpu.model for gpu in facts.gpus)
    return ", ".join(f"{count} x {model}" for model, count in models.items()) or "-"


def _clock(facts: HostFacts) -> str:
    """`+0.0 s`; what the round trip leaves open is not shown as a difference."""
    skew = facts.more.skew
    if skew is None:
        return "-"
    ahead = 0.0 if abs(skew.ahead) <= skew.error else skew.ahead
    return f"{ahead:+.1f} s"
