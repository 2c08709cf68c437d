"""One run for people: in full, and the verdict of a finished one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llmctl.controller.collect.view import Failure, NodeView, RunView
from llmctl.controller.ui.format import age, duration, names, number, rate, steps
from llmctl.controller.ui.plain import plain
from llmctl.wire.states import NodeState, RunState
from llmctl.wire.supervision import ENDED, AttemptNote

STYLE = {
    "starting": "cyan",
    "running": "green",
    "lost-contact": "yellow",
    "restarting": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "preempted": "magenta",
}
LAST_WORDS = 6
"""Lines of the failing rank's log that a verdict shows; `llmctl logs` has them all."""


def detail(view: RunView) -> RenderableType:
    """One run in full: where it stands, each host, the first failure."""
    parts: list[RenderableType] = [Text.assemble(*_headline(view)), _nodes_table(view)]
    if view.checkpoint_problem:
        parts.append(Text(plain(view.checkpoint_problem), style="yellow"))
    told = [*view.stragglers, *([view.hang] if view.hang and not view.failures else [])]
    if told:
        parts.append(Text("\n".join(plain(line) for line in told), style="yellow"))
    if view.supervision and len(view.supervision.attempts) > 1:
        parts.append(Text("\n".join(attempt_lines(view.supervision.attempts))))
    if view.supervision and view.note:
        parts.append(Text(plain(view.note), style="yellow"))
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
    if view.state in (RunState.CANCELLED, RunState.PREEMPTED):
        at = f" at step {view.step}" if view.step is not None else ""
        how = "stopped" if view.state is RunState.CANCELLED else "preempted"
        kept = f" · checkpoint {view.checkpoint_step}" if view.checkpoint_step is not None else ""
        return [f"{view.run_id} was {how}{at}{kept}", *_unsettled(view)]
    if view.state is RunState.FAILED:
        at = f", at step {view.step}" if view.step is not None else ""
        return [
            f"{view.run_id} failed in attempt {view.attempt}{at}",
            *_supervisor_why(view),
            *failure_lines(view),
            *_unsettled(view),
        ]
    return [f"{view.run_id} is {view.state.value}: {view.note or 'not every host can be asked'}"]


def _supervisor_why(view: RunView) -> list[str]:
    """Why its supervisor formed no further attempt."""
    told = view.supervision
    return (
        [f"no more attempts {plain(told.detail)}"] if told and told.phase == ENDED and view.failures else []
    )


def _unsettled(view: RunView) -> list[str]:
    """The nodes of an ended run that may still hold processes: they go on, or nobody can tell."""
    going_on = [node.host for node in view.nodes if node.state is not None and not node.state.ended]
    lines = [f"{', '.join(going_on)} still running: llmctl stop {view.run_id}"] if going_on else []
    unknown = [node for node in view.nodes if node.state is None and not node.missing]
    return lines + [f"{node.host} unknown ({node.error}): llmctl stop {view.run_id}" for node in unknown]


def attempt_lines(attempts: Sequence[AttemptNote]) -> list[str]:
    """A line per attempt: hosts, how far it came, how long it took, why it ended; what is unusual."""
    lines = []
    for one in attempts:
        parts = [f"attempt {one.attempt}", one.state, "on " + names(list(one.hosts))]
        if one.step is not None:
            parts.append(f"to step {one.step}")
        if one.ended_at is not None:
            parts.append(f"in {duration(max(0.0, one.ended_at - one.started_at))}")
        lines.append("  ".join(parts) + (f": {plain(one.reason)}" if one.reason else ""))
        lines += [f"  {plain(one.note)}"] if one.note else []
    return lines


def failure_lines(view: RunView) -> list[str]:
    """The first failure, what followed, the failing rank's last words, where to read on."""
    if not view.failures:
        return [f"why             {plain(view.note)}"] if view.note else []
    first, *then = view.failures
    lines = [f"first failure   {_failure(first)}  {_clock(first)}"]
    if then and not view.hang:
        followed = " · ".join(f"{_failure(f)} +{f.at - first.at:.1f} s" for f in then)
        lines.append(f"then            {followed}")
    words = [words for line in first.log if (words := plain(line)).strip()][-LAST_WORDS:]
    lines += [f"{'last words' if n == 0 else '':<15} {line}" for n, line in enumerate(words)]
    rank = "" if first.rank is None else f" --rank {first.rank.rank}"
    lines.append(f"logs            llmctl logs {view.run_id}{rank}")
    return lines


def _failure(failure: Failure) -> str:
    if failure.rank is None:
        hung = failure.reason.startswith("hang:")  # it names the host that holds the others up
        return failure.reason if hung else f"{failure.host}: {failure.reason}"
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
    table.add_column("HOST", no_wrap=True, min_width=max((len(node.host) for node in view.nodes), default=0))
    for title in ("NODE", "RANKS", "STATE", "LAST EVENT"):
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
            escape(plain(_node_note(node))),
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
