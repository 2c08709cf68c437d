"""The loss table of a pulled run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from llmctl.controller.ui.format import learning_rate, number, rate
from llmctl.wire import metrics

ROWS = 8


def read_steps(pulled: Path) -> list[dict[str, Any]]:
    """The step lines of a pulled run, by step; a step that was done again counts once, the last time."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(pulled.glob("*/attempt-*/metrics.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            document = _object(line)
            if document.get("kind") == metrics.STEP and isinstance(document.get("step"), int):
                found[document["step"]] = document
    return [found[step] for step in sorted(found)]


def _object(line: str) -> dict[str, Any]:
    """Scripts append to metrics.jsonl too, and a cut line is none: what is no JSON object counts as empty."""
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def loss_table(lines: Sequence[dict[str, Any]]) -> Table:
    """About eight rows from the first step to the last."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("STEP", "LOSS", "LR", "GRAD NORM", "TOK/S"):
        table.add_column(title, justify="right")
    for index in _spread(len(lines)):
        line = lines[index]
        table.add_row(
            str(line["step"]),
            number(line.get("loss")),
            learning_rate(line.get("lr")),
            number(line.get("grad_norm"), 2),
            rate(line.get("tokens_per_s")),
        )
    return table


def _spread(count: int) -> list[int]:
    """Up to ROWS indices, first and last included."""
    if count <= ROWS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (ROWS - 1)) for i in range(ROWS)})
