"""Many runs for people: the status table, as wide as the terminal allows, and its rows for machines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmctl.controller.collect.view import RunView
from llmctl.controller.ledger.records import RunRecord
from llmctl.controller.ui.columns import GAP, fitting, needed
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import age, number, rate, steps
from llmctl.controller.ui.plain import plain
from llmctl.controller.ui.runs import STYLE
from llmctl.errors import LlmctlError
from llmctl.wire import codec

Row = RunView | RunRecord

COLUMNS = ("RUN", "STATE", "NODES", "STEP", "LOSS", "TOK/S", "AGE")
FIRST_TO_GO = ("NODES", "TOK/S", "LOSS", "AGE", "STEP")
"""What a narrow terminal leaves out, in this order; the run's id and state always stay."""
NARROWEST_NOTE = 14
"""A narrower column of notes can't be read: they go below the table instead."""


def show_rows(screen: Screen, rows: list[Row], errors: list[LlmctlError]) -> None:
    """The table on stdout; unreachable hosts and what to do when there is nothing on stderr."""
    if rows:
        screen.out.print(rows_table(rows, screen.out.width))
    elif not errors:
        screen.say("no runs yet.   llmctl demo · llmctl init · llmctl train -f job.yaml")
    for error in errors:
        screen.warn(_unreachable(error))


def live_rows(rows: list[Row], errors: list[LlmctlError], width: int) -> RenderableType:
    """The table with the unreachable hosts below it, for a display that redraws itself."""
    return Group(rows_table(rows, width), *(Text(f"! {_unreachable(e)}", style="yellow") for e in errors))


def _unreachable(error: LlmctlError) -> str:
    return f"{error.line()}; its runs are not shown"


def rows_table(rows: Sequence[Row], width: int) -> RenderableType:
    """One line per run; in `width` columns ids stay whole, and what doesn't fit is left out or put below."""
    cells = [_cells(row) for row in rows]
    notes = [plain(_nodes_and_note(row)[1]) for row in rows]
    widths = needed(COLUMNS, cells)
    shown = fitting(widths, width, FIRST_TO_GO)
    room = width - sum(widths[title] + GAP for title in shown)
    beside = room >= NARROWEST_NOTE or not any(notes)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for title in shown:
        table.add_column(title, no_wrap=True, overflow="ignore", min_width=widths[title])
    if beside:
        table.add_column("NOTE", overflow="fold")
    for cell, note in zip(cells, notes, strict=True):
        texts = [Text(cell[title], style=STYLE[cell[title]] if title == "STATE" else "") for title in shown]
        table.add_row(*texts, *([Text(note)] if beside else []))
    below = [] if beside else [(cell["RUN"], note) for cell, note in zip(cells, notes, strict=True) if note]
    return Group(table, *(Text(f"{run}: {note}") for run, note in below))


def _cells(row: Row) -> dict[str, str]:
    return {
        "RUN": row.run_id,
        "STATE": row.state.value,
        "NODES": _nodes_and_note(row)[0],
        "STEP": steps(row.step, row.total),
        "LOSS": number(row.loss),
        "TOK/S": rate(row.tokens_per_s),
        "AGE": age(time.time() - row.created_at),
    }


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
