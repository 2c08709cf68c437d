"""`store check` for people: a spinner for the step that runs, a line for each that is through, a verdict."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.status import Status
from rich.table import Table

from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import duration
from llmctl.storage.drill import Finding, Report

DOING = {
    "write": "writing and reading",
    "see": "looking whether changes are seen at once",
    "names": "trying odd names",
    "parts": "reading in parts",
    "replace": "replacing a file under a reader",
    "create": "two writers at once",
    "rename": "renaming",
    "list": "writing many files",
    "clean up": "leaving something unfinished",
    "latency": "timing small calls",
    "throughput": "moving files up and down",
    "clock": "comparing clocks",
    "room": "asking for room",
    "remove": "removing all of it",
}


class DrillView:
    """A context manager; `begins` and `found` are the drill's callbacks. Silent where JSON is asked for."""

    def __init__(self, screen: Screen, uri: str) -> None:
        self._screen = screen
        self._uri = uri
        self._status: Status | None = screen.err.status("", spinner="dots") if screen.live else None

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status:
            self._status.stop()

    def begins(self, step: str) -> None:
        if self._status:
            self._status.update(f"[cyan]{escape(step)}[/]  {DOING[step]}")

    def found(self, finding: Finding) -> None:
        if not self._screen.json_output:
            self._line(finding)

    def _line(self, finding: Finding) -> None:
        if not self._screen.out.is_terminal:
            mark = "✗" if finding.error else "✓"
            self._screen.result(f"{mark} {finding.name:<10} {finding.text}  ({duration(finding.seconds)})")
            return
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(width=10)
        grid.add_column(ratio=1, overflow="fold")
        grid.add_column(justify="right", no_wrap=True)
        mark = "[bold red]✗[/]" if finding.error else "[green]✓[/]"
        took = f"[dim]{duration(finding.seconds)}[/]"
        grid.add_row(mark, escape(finding.name), escape(self._screen.clean(finding.text)), took)
        self._screen.out.print(grid)


def verdict(report: Report) -> str:
    """The last line of a store that is fit."""
    up, down = report.numbers.get("up_bytes_per_s"), report.numbers.get("down_bytes_per_s")
    speed = f" · {up / 1e6:.0f} MB/s up, {down / 1e6:.0f} down" if up and down else ""
    how = "replace and rename are one step" if report.atomic_rename else "objects are replaced in one step"
    return f"{report.uri} is fit: {how}{speed}"
