"""Runs for people: the status table, one run in full, and the verdict of a finished one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llmctl.controller.collect.view import Failure, NodeView, RunView
from llmctl.controller.ledger.records import RunRecord
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import age, duration, number, rate, steps
from llmctl.errors import LlmctlError
from llmctl.wire import codec
from llmctl.wire.states import NodeState, RunState

Row = RunView | RunRecord

STYLE = {
    "starting": "cyan",
    "running": "green",
    "lost-contact": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}
LAST_WORDS = 6
"""Lines of the failing rank's log that a verdict shows; `llmctl logs` has them all."""


def show_rows(screen: Screen, rows: list[Row], errors: list[LlmctlError]) -> None:
    """The table on stdout; unreachable hosts and what to do when there is nothing on stderr."""
    if rows:
        screen.out.print(rows_table(rows, errors))
    elif not errors:
        screen.say("no runs yet.   llmctl demo · llmctl init · llmctl train -f job.yaml")
    for error in errors:
        screen.warn(f"{error.line()}; its runs are not shown")


def rows_table(rows: list[Row], _errors: list[LlmctlError]) -> Table:
    """One line per run."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("RUN", "STATE", "NODES", "STEP", "LOSS", "TOK/S", "AGE"):
        table.add_column(title, no_wrap=True)
    table.add_column("NOTE", overflow="fold", ratio=1)
    for row in rows:
        state = row.state.value
        nodes, note = _nodes_and_note(row)
        table.add_row(
            escape(row.run_id),
            f"[{STYLE[state]}]{state}[/]",
            nodes,
            steps(row.step, row.total),
            number(row.loss),
            rate(row.tokens_per_s),
            age(time.time() - row.created_at),
            escape(note),
        )
    return table


def _nodes_and_note(row: Row) -> tuple[str, str]:
    if isinstance(row, RunView):
        return f"{row.answered}/{len(row.nodes)}", row.note
    return f"-/{len(row.hosts)}" if not row.state.ended else str(len(row.hosts)), row.reason


def row_document(row: Row) -> dict[str, Any]:
    """One run for `-o json`; the same keys whether its hosts or the ledger told."""
    keys = ("run_id", "name", "state", "attempt", "created_at", "step", "total", "loss", "tokens_per_s")
    document = {key: codec.encode(getattr(row, key)) for key in keys}
    nodes, note = _nodes_and_note(row)
    hosts = [n.host for n in row.nodes] if isinstance(row, RunView) else [h.name for h in row.hosts]
    return {**document, "hosts": hosts, "nodes": nodes, "note": note}


def detail(view: RunView) -> RenderableType:
    """One run in full: where it stands, each host, the first failure."""
    parts: list[RenderableType] = [Text.assemble(*_headline(view)), _nodes_table(view)]
    if view.failures:
        parts.append(Text("\n".join(failure_lines(view))))
    return Group(*parts)


def verdict_lines(view: RunView) -> list[str]:
    """How a run ended, in plain lines: the first says everything, the rest what to do."""
    took = duration(view.age_s if view.took_s is None else view.took_s)
    if view.state is RunState.SUCCEEDED:
        at = f" at step {steps(view.step, view.total)}" if view.step is not None else ""
        loss = f" · loss {number(view.loss)}" if view.loss is not None else ""
        kept = f" · checkpoint {view.checkpoint_step}" if view.checkpoint_step is not None else ""
        return [f"{view.run_id} succeeded{at} in {took}{loss}{kept}"]
    if view.state is RunState.CANCELLED:
        at = f" at step {view.step}" if view.step is not None else ""
        return [f"{view.run_id} was stopped{at}"]
    if view.state is RunState.FAILED:
        at = f", at step {view.step}" if view.step is not None else ""
        return [f"{view.run_id} failed in attempt {view.attempt}{at}", *failure_lines(view)]
    return [f"{view.run_id} is {view.state.value}: {view.note or 'not every host can be asked'}"]


def failure_lines(view: RunView) -> list[str]:
    """The first failure, what followed, the failing rank's last words, where to read on."""
    first, *then = view.failures
    lines = [f"first failure   {_failure(first)}  {_clock(first)}"]
    if then:
        followed = " · ".join(f"{_failure(f)} +{f.at - first.at:.1f} s" for f in then)
        lines.append(f"then            {followed}")
    words = [line for line in first.log if line.strip()][-LAST_WORDS:]
    lines += [f"{'last words' if n == 0 else '':<15} {line}" for n, line in enumerate(words)]
    rank = "" if first.rank is None else f" --rank {first.rank.rank}"
    lines.append(f"logs            llmctl logs {view.run_id}{rank}")
    return lines


def _failure(failure: Failure) -> str:
    if failure.rank is None:
        return f"{failure.host}: {failure.reason}"
    how = failure.rank.signal or f"exit {failure.rank.code}"
    return f"rank {failure.rank.rank} ({failure.host})  {how}"


def _clock(failure: Failure) -> str:
    return time.strftime("%H:%M:%S", time.localtime(failure.at)) + f".{int(failure.at % 1 * 1000):03d}"


def _headline(view: RunView) -> list[str | tuple[str, str]]:
    state = view.state.value
    parts: list[str | tuple[str, str]] = [view.run_id + " ", (state, STYLE[state])]
    facts = [f"attempt {view.attempt}"]
    if view.step is not None:
        facts.append(f"step {steps(view.step, view.total)}")
    if view.loss is not None:
        facts.append(f"loss {number(view.loss)}")
    if view.tokens_per_s is not None:
        facts.append(f"{rate(view.tokens_per_s)} tok/s")
    if view.eta_s is not None:
        facts.append(f"ETA {duration(view.eta_s)}")
    if view.checkpoint_step is not None:
        facts.append(f"checkpoint {view.checkpoint_step}")
    facts.append(f"age {age(view.age_s)}" if view.took_s is None else f"took {duration(view.took_s)}")
    return [*parts, " · " + " · ".join(facts)]


def _nodes_table(view: RunView) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("HOST", "NODE", "RANKS", "STATE", "LAST EVENT"):
        table.add_column(title, no_wrap=True)
    table.add_column("NOTE", overflow="fold", ratio=1)
    for node in view.nodes:
        state = node.state.value if node.state else "unknown"
        table.add_row(
            escape(node.host),
            str(node.node_rank),
            str(node.nproc),
            f"[{STYLE.get(state, 'yellow')}]{state}[/]",
            "-" if node.last_event_age_s is None else f"{age(node.last_event_age_s)} ago",
            escape(_node_note(node)),
        )
    return table


def _node_note(node: NodeView) -> str:
    if node.error:
        return node.error
    if node.exit is not None:
        left = f"; still there: {', '.join(node.exit.left)}" if node.exit.left else ""
        return ("" if node.state is NodeState.SUCCEEDED else node.exit.reason) + left
    if node.lease_age_s is not None and node.lease_age_s > 10:
        return f"agent's lease is {age(node.lease_age_s)} old"
    return ""


def live(screen: Screen, render: Callable[[], RenderableType], every_s: float) -> None:
    """Show `render()` again and again until Ctrl-C; without a terminal, one after the other."""
    if not screen.out.is_terminal:
        while True:
            screen.out.print(render())
            time.sleep(every_s)
    with Live(render(), console=screen.out, auto_refresh=False, screen=False) as display:
        while True:
            time.sleep(every_s)
            display.update(render(), refresh=True)
