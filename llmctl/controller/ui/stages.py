"""The stages before a job runs: a spinner while one takes long, one line when it is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.table import Table

from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import duration, size


class Stage:
    """What a stage says when it is done; set `text` inside the `with` block. Empty: no line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.text = ""
        self._show = show
        self._bytes = 0
        self._counted = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """The sum of what `add_bytes` was told."""
        return self._bytes

    def doing(self, what: str) -> None:
        """What comes next, for the spinner."""
        self._show(what)

    def add_bytes(self, _path: str, count: int) -> None:
        """Bytes that have arrived since the last call; the spinner shows the sum. Any thread may call."""
        with self._lock:
            self._bytes += count
            self._show(size(self._bytes))

    def tell(self, host: str, doing: str) -> None:
        """What a host does now. Any thread may call."""
        with self._lock:
            self._show(f"{host}: {doing}")

    def count(self, count: int, what: str) -> None:
        """The same for things that are no bytes."""
        with self._lock:
            self._counted += count
            self._show(f"{self._counted:,} {what}")


class Stages:
    """Prints `✓ name  text  seconds` lines to stderr."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[Stage]:
        """Time one stage; an error leaves no ✓ line, the error's own line names the stage."""
        started = time.monotonic()
        what = f"[cyan]{escape(name)}[/]  {escape(doing)}"
        if self._screen.live:
            with self._screen.err.status(what, spinner="dots") as spinner:
                stage = Stage(lambda more: spinner.update(f"{what}  {more}"))
                yield stage
        else:
            stage = Stage(lambda _more: None)
            yield stage
        if stage.text:
            self.line(name, stage.text, time.monotonic() - started)

    def line(self, name: str, text: str, seconds: float | None = None) -> None:
        """One ✓ line; on a terminal the time stands at the right edge."""
        took = "" if seconds is None else duration(seconds)
        if not self._screen.err.is_terminal:
            self._screen.say(f"✓ {name:<10} {text}" + (f"  ({took})" if took else ""))
            return
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(width=10)
        grid.add_column(ratio=1, overflow="fold")
        grid.add_column(justify="right", no_wrap=True)
        grid.add_row("[green]✓[/]", escape(name), escape(text), f"[dim]{took}[/]")
        self._screen.err.print(grid)
