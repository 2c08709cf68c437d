"""What holds each host, as a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from llmctl.controller.ui.format import age
from llmctl.controller.ui.plain import plain
from llmctl.errors import LlmctlError
from llmctl.wire.agents import PsReply, RunOnHost

_MOST_NAMED = 3


def agents_table(replies: Mapping[str, PsReply | LlmctlError]) -> Table:
    """One line per host and run; a host without any says so."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("HOST", "RUN", "STATE", "AGENT", "RANKS", "PROCESSES", "AGE"):
        table.add_column(title, no_wrap=True)
    table.add_column("NOTE", overflow="fold")
    for host, reply in replies.items():
        if isinstance(reply, LlmctlError):
            table.add_row(escape(host), "-", "unknown", "-", "-", "-", "-", escape(plain(reply.message)))
        elif not reply.runs:
            table.add_row(escape(host), "-", "free", "-", "-", "-", "-", "")
        else:
            for one in reply.runs:
                table.add_row(escape(host), *_cells(one))
    return table


def _cells(one: RunOnHost) -> tuple[str, ...]:
    return (
        one.run_id,
        "gone" if one.state is None else one.state.value,
        "-" if one.agent_pid is None else str(one.agent_pid),
        str(one.ranks),
        str(one.processes),
        age(one.age_s),
        escape(plain(note(one))),
    )


def note(one: RunOnHost) -> str:
    """What is odd about a run on a host; mostly nothing."""
    parts = []
    if one.reaped:
        parts.append(f"{one.reaped} orphan{'s' * (one.reaped != 1)} ended")
    if one.orphans:
        more = f" and {len(one.orphans) - _MOST_NAMED} more" if len(one.orphans) > _MOST_NAMED else ""
        parts.append(f"orphans: {', '.join(one.orphans[:_MOST_NAMED])}{more}; llmctl ps --reap ends them")
    if one.waits:
        parts.append("its supervisor is about to start the next attempt")
    return "; ".join(parts)
