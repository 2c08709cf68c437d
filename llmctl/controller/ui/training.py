"""The live view of a run: one progress line on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import duration, learning_rate, number, rate, size, steps
from llmctl.errors import LlmctlError
from llmctl.wire import metrics
from llmctl.wire.records import Event, EventKind

PLAIN_EVERY_S = 10.0
"""Without a terminal: a step line at most this often, so that a CI log stays readable."""


class TrainingView:
    """A `Watcher` that shows a run. A context manager: leaving it freezes the last line in place."""

    def __init__(self, screen: Screen, *, total: int | None, logs: bool) -> None:
        self._screen = screen
        self._total = total
        self._logs = logs
        self._last: dict[str, Any] = {}
        self._printed_at = 0.0
        self._lost: dict[str, LlmctlError] = {}
        self._ended: set[str] = set()
        self._bar = _bar(screen, lambda: self._last) if screen.live else None
        self._task = self._bar.add_task("step", total=total, visible=False) if self._bar else None
        self.first_step_at: float | None = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def metric(self, host: str, line: dict[str, Any]) -> None:
        kind = line.get("kind", metrics.STEP)
        if kind == metrics.STEP:
            self._step(line)
        elif kind == metrics.CHECKPOINT:
            self._print(
                f"checkpoint {line.get('step')} committed ({size(line.get('bytes'))}, "
                f"stalled {line.get('stalled_s', 0):.2f} s)",
                "green",
            )
        elif kind == metrics.NOTE:
            self._print(str(line.get("text", "")), "yellow")

    def event(self, host: str, event: Event) -> None:
        if event.kind == EventKind.RANK_EXITED and event.code:
            how = event.signal or f"exit {event.code}"
            self._print(f"rank {event.rank} on {host}: {how}", "red")
        elif event.kind == EventKind.ENDED:
            self._ended.add(host)

    def log(self, host: str, rank: int | None, lines: list[str]) -> None:
        if not self._logs:
            return
        for line in lines:
            where = host if rank is None else f"{host}:{rank}"
            self._write(f"[dim]{escape(where)}[/] {escape(line)}")

    def lost(self, host: str, error: LlmctlError) -> None:
        if host not in self._lost:
            self._print(f"lost contact with {host}: {error.message}; the run there may be fine", "yellow")
        self._lost[host] = error

    def back(self, host: str) -> None:
        if self._lost.pop(host, None) is not None:
            self._print(f"contact with {host} again", "green")

    def tick(self) -> None:
        """The bar redraws itself; nothing to do."""

    def _step(self, line: dict[str, Any]) -> None:
        self.first_step_at = self.first_step_at or time.monotonic()
        self._last = line
        self._total = line.get("total") or self._total
        if self._bar and self._task is not None:
            done = line.get("step", 0)
            self._bar.update(self._task, completed=done, total=self._total, visible=True)
            return
        last = line.get("step") == self._total
        if last or time.monotonic() - self._printed_at >= PLAIN_EVERY_S:
            self._printed_at = time.monotonic()
            self._screen.say(f"step {steps(line.get('step'), self._total)} {summary(line, self._total)}")

    def _print(self, text: str, style: str) -> None:
        self._write(f"[{style}]{escape(text)}[/]")

    def _write(self, markup: str) -> None:
        console = self._bar.console if self._bar else self._screen.err
        console.print(self._screen.clean(markup), soft_wrap=True)


def summary(line: dict[str, Any], total: int | None) -> str:
    """`loss 3.412  lr 2.9e-4  41.2k tok/s  ETA 2 h 07 m`, of what the line has."""
    parts = []
    if line.get("loss") is not None:
        parts.append(f"loss {number(line['loss'])}")
    if line.get("lr") is not None:
        parts.append(f"lr {learning_rate(line['lr'])}")
    if line.get("tokens_per_s") is not None:
        parts.append(f"{rate(line['tokens_per_s'])} tok/s")
    eta = _eta(line, total)
    if eta is not None:
        parts.append(f"ETA {duration(eta)}")
    if (line.get("data_wait") or 0) >= 0.005:
        parts.append(f"data wait {line['data_wait']:.1%}")
    return "  ".join(parts)


def _eta(line: dict[str, Any], total: int | None) -> float | None:
    tokens, speed, step = line.get("tokens"), line.get("tokens_per_s"), line.get("step")
    if not (tokens and speed and total and step is not None):
        return None
    return float(max(0, total - step) * tokens / speed)


class _Summary(ProgressColumn):
    """What the last step line says, at the right of the bar."""

    def __init__(self, last: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._last = last

    def render(self, task: Task) -> Text:
        total = int(task.total) if task.total else None
        return Text(summary(self._last(), total), no_wrap=True, overflow="ellipsis")


def _bar(screen: Screen, last: Callable[[], dict[str, Any]]) -> Progress:
    return Progress(
        TextColumn("step {task.completed:>6.0f}/{task.total}"),
        BarColumn(bar_width=16),
        _Summary(last),
        console=screen.err,
        transient=False,
        refresh_per_second=5,
        expand=False,
    )
