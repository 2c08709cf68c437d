"""Layouts for people: the table of `llmctl plan`, and the rows of its document."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from llmctl.controller.plan.choose import Choice
from llmctl.controller.plan.layouts import Row, Verdict
from llmctl.controller.ui.format import duration, rate, size

STYLE = {Verdict.FITS: "green", Verdict.TOO_LARGE: "yellow", Verdict.REFUSED: "red"}
COLUMNS = ("LAYOUT", "MICRO", "RECOMPUTE", "MEMORY", "PARAMS", "GRADS", "OPTIM", "ACTIV", "TEMP")
SPEED = ("STEP", "TOK/S", "EXPOSED", "BUBBLE")
NARROW = ("LAYOUT", "MICRO", "MEMORY", "STEP", "TOK/S")
"""What 80 columns hold."""
WIDE = 130
OTHERS = 4
"""Rows of layouts that do not fit, and of refused ones, that are shown beside the best."""


def shown_rows(rows: Sequence[Row], top: int) -> list[Row]:
    """The best `top` that fit, and the first few of those that don't and of the refused."""
    limit = {Verdict.FITS: top, Verdict.TOO_LARGE: min(top, OTHERS), Verdict.REFUSED: min(top, OTHERS)}
    return [
        row for kind, most in limit.items() for row in [row for row in rows if row.verdict is kind][:most]
    ]


def layouts_table(rows: Sequence[Row], choice: Choice, width: int) -> Table:
    """One line per layout; the chosen one is marked. Sizes are per rank."""
    titles = (*COLUMNS, *SPEED) if width >= WIDE else NARROW
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", *titles):
        table.add_column(title, no_wrap=True, overflow="ignore")
    table.add_column("NOTE", overflow="fold", min_width=12)
    for row in rows:
        cells = _cells(row)
        mark = Text("→", style="green") if row is choice.row else Text("")
        note = Text(row.why or "", style=STYLE[row.verdict])
        table.add_row(mark, *(Text(cells[title]) for title in titles), _verdict(row) + note)
    return table


def _verdict(row: Row) -> Text:
    if row.fits:
        return Text("" if row.as_asked else "fits so", style=STYLE[row.verdict])
    return Text(f"{row.verdict.value}: ", style=STYLE[row.verdict])


def _cells(row: Row) -> dict[str, str]:
    memory, time = row.memory, row.time
    return {
        "LAYOUT": row.spec.name,
        "MICRO": str(row.micro_batch),
        "RECOMPUTE": row.checkpointing,
        "MEMORY": size(memory.total) if memory else "-",
        "PARAMS": size(memory.parameters) if memory else "-",
        "GRADS": size(memory.gradients) if memory else "-",
        "OPTIM": size(memory.optimizer) if memory else "-",
        "ACTIV": size(memory.activations) if memory else "-",
        "TEMP": size(memory.temporary) if memory else "-",
        "STEP": _step(time.total) if time else "-",
        "TOK/S": rate(time.tokens_per_s) if time else "-",
        "EXPOSED": f"{time.exposed:.0%}" if time else "-",
        "BUBBLE": f"{time.bubble / time.total:.0%}" if time else "-",
    }


def _step(seconds: float) -> str:
    if seconds >= 1:
        return duration(seconds)
    return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"


def row_document(row: Row) -> dict[str, Any]:
    """One layout for `-o json`: bytes and seconds."""
    sizes = {name: getattr(row.spec, name) for name in ("pp", "dp_replicate", "dp_shard", "tp", "schedule")}
    return {
        "name": row.spec.name,
        "parallel": sizes,
        "verdict": row.verdict.value,
        "why": row.why,
        "micro_batch": row.micro_batch,
        "activation_checkpointing": row.checkpointing,
        "as_asked": row.as_asked,
        "capacity": row.capacity,
        "memory": _numbers(row.memory, "total"),
        "time": _numbers(row.time, "total", "tokens_per_s", "exposed"),
    }


def _numbers(value: Any, *more: str) -> dict[str, float] | None:
    if value is None:
        return None
    return {**dataclasses.asdict(value), **{name: getattr(value, name) for name in more}}
