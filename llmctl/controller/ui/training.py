"""The live view of a run: one progress line on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.text import Text

from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import duration, learning_rate, names, number, rate, size, steps
from llmctl.controller.ui.plain import plain
from llmctl.errors import LlmctlError
from llmctl.wire import metrics
from llmctl.wire.records import Event, EventKind
from llmctl.wire.states import NodeState

PLAIN_EVERY_S = 10.0
"""Without a terminal: a step line at most this often, so that a CI log stays readable."""
LAUNCHER_LINES = 20
"""Last launcher lines kept per host: they matter only where a node fails and none of its ranks did."""


class TrainingView:
    """A `Watcher` that shows a run. A context manager: leaving it freezes the last line in place."""

    def __init__(
        self,
        screen: Screen,
        *,
        total: int | None,
        logs: bool,
        hosts: Sequence[str] = (),
        unit: str = "step",
    ) -> None:
        """`total`: steps, None where unknown; `logs`: show the ranks' lines; `hosts`: whom we wait for;
        `unit`: what a step is called."""
        self._screen = screen
        self._unit = unit
        self._total = total
        self._logs = logs
        self._last: dict[str, Any] = {}
        self._printed_at = 0.0
        self._lost: dict[str, LlmctlError] = {}
        self._rank_failed: set[str] = set()
        self._failed_hosts: set[str] = set()
        self._launcher: dict[str, deque[str]] = {}
        self._where = f" on {names(list(hosts))}" if hosts else ""
        self._bar = _bar(screen, lambda: self._last, unit) if screen.live else None
        self._task = self._bar.add_task(f"starting{self._where} …", total=None) if self._bar else None
        self._waiting = True

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
        self._show_launcher()
        self._wait_no_more()
        if self._bar and self._task is not None:
            self._bar.update(self._task, left=True)
            self._bar.stop()

    def metric(self, host: str, line: dict[str, Any]) -> None:
        kind = line.get("kind", metrics.STEP)
        if kind == metrics.STEP:
            self._step(line)
        elif kind == metrics.CHECKPOINT:
            self._print(_committed(line), "green")
        elif kind == metrics.NOTE:
            self._print(str(line.get("text", "")), "yellow")

    def event(self, host: str, event: Event) -> None:
        if event.kind == EventKind.AGENT_STARTED:  # of a new attempt: what ended before it is forgotten
            self._rank_failed.discard(host)
            self._failed_hosts.discard(host)
        elif event.kind == EventKind.RANK_STARTED and self._waiting:
            self._describe(f"started{self._where}, no {self._unit} yet …")
        elif event.kind == EventKind.RANK_EXITED and event.code:
            self._rank_failed.add(host)
            how = event.signal or f"exit {event.code}"
            self._print(f"rank {event.rank} on {host}: {how}", "red")
        elif event.kind == EventKind.ENDED and event.detail.startswith(NodeState.FAILED.value):
            self._failed_hosts.add(host)

    def log(self, host: str, rank: int | None, lines: list[str]) -> None:
        if rank is None:
            self._launcher.setdefault(host, deque(maxlen=LAUNCHER_LINES)).extend(lines)
        elif self._logs:
            self._wait_no_more()
            for line in lines:
                self._log_line(f"{host}:{rank}", line)

    def lost(self, host: str, error: LlmctlError) -> None:
        if host not in self._lost:
            self._print(f"lost contact with {host}: {error.message}; the run there may be fine", "yellow")
        self._lost[host] = error

    def back(self, host: str) -> None:
        if self._lost.pop(host, None) is not None:
            self._print(f"contact with {host} again", "green")

    def news(self, text: str) -> None:
        """What the run's supervisor does."""
        self._print(text, "yellow")

    def tick(self) -> None:
        """The bar redraws itself; nothing to do."""

    def _step(self, line: dict[str, Any]) -> None:
        self._waiting = False
        self._last = line
        self._total = line.get("total") or self._total
        if self._bar and self._task is not None:
            done = line.get("step", 0)
            self._bar.update(self._task, completed=done, total=self._total, description="", visible=True)
            return
        last = line.get("step") == self._total
        if last or time.monotonic() - self._printed_at >= PLAIN_EVERY_S:
            self._printed_at = time.monotonic()
            self._screen.say(
                f"{self._unit} {steps(line.get('step'), self._total)} {summary(line, self._total)}"
            )

    def _describe(self, text: str) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=text)

    def _wait_no_more(self) -> None:
        """Something shows already that the job goes on, or it has ended: no word of waiting."""
        if self._waiting and self._bar and self._task is not None:
            self._bar.update(self._task, visible=False)
        self._waiting = False

    def _show_launcher(self) -> None:
        """A node that failed without a failed rank: only its launcher can say why."""
        if self._rank_failed:
            return
        for host in sorted(self._failed_hosts):
            for line in self._launcher.pop(host, ()):
                self._log_line(f"{host}:launcher", line)

    def _log_line(self, where: str, line: str) -> None:
        shown = plain(line) if self._screen.err.is_terminal else line
        self._write(f"[dim]{escape(where)}[/] {escape(shown)}")

    def _print(self, text: str, style: str) -> None:
        self._write(f"[{style}]{escape(plain(text))}[/]")

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


def _committed(line: dict[str, Any]) -> str:
    """`checkpoint 400 committed (1.1 GB, stalled 0.18 s, took 4.2 s)`."""
    took = line.get("took_s")
    beside = "" if took is None else f", took {took:.1f} s"
    stalled = f"stalled {line.get('stalled_s', 0):.2f} s"
    return f"checkpoint {line.get('step')} committed ({size(line.get('bytes'))}, {stalled}{beside})"


def _eta(line: dict[str, Any], total: int | None) -> float | None:
    tokens, speed, step = line.get("tokens"), line.get("tokens_per_s"), line.get("step")
    if not (tokens and speed and total and step is not None):
        return None
    return float(max(0, total - step) * tokens / speed)


class _Count(ProgressColumn):
    """`step 420/5000`, or what we wait for as long as there is no step."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        if task.description:
            return Text(task.description, style="cyan", no_wrap=True, overflow="ellipsis")
        total = None if task.total is None else int(task.total)
        return Text(f"{self._unit} {steps(int(task.completed), total):>10}", no_wrap=True)


class _Bar(BarColumn):
    """Pulses where the total is unknown, and is gone when the view is left: never full by guess."""

    def render(self, task: Task) -> ProgressBar:
        bar = super().render(task)
        if task.total is None and task.fields.get("left"):
            bar.width = 0
        return bar


class _Summary(ProgressColumn):
    """What the last step line says, at the right of the bar."""

    def __init__(self, last: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._last = last

    def render(self, task: Task) -> Text:
        total = int(task.total) if task.total else None
        return Text(summary(self._last(), total), no_wrap=True, overflow="ellipsis")


def _bar(screen: Screen, last: Callable[[], dict[str, Any]], unit: str) -> Progress:
    return Progress(
        _Count(unit),
        _Bar(bar_width=16),
        _Summary(last),
        console=screen.err,
        transient=False,
        refresh_per_second=5,
        expand=False,
    )
