"""The losses of every attempt of a run, out of the metrics that its hosts kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.controller.plan.drill import Lineage
from llmctl.wire.metrics import STEP

WANTED = re.compile(r"attempt-\d+/metrics\.jsonl")
"""Of a run's files, for `pull_run(only=…)`."""

_ATTEMPT = re.compile(r"attempt-(\d{1,9})")


def lineage_of(folder: Path) -> Lineage:
    """What lies below a folder that `pull_run` filled: `<host>/attempt-<n>/metrics.jsonl`."""
    losses: dict[int, dict[int, float]] = {}
    for path in sorted(folder.glob("*/attempt-*/metrics.jsonl")):
        match = _ATTEMPT.fullmatch(path.parent.name)
        if match is not None:
            losses.setdefault(int(match[1]), {}).update(_steps(path))
    return Lineage(losses=losses)


def _steps(path: Path) -> Iterator[tuple[int, float]]:
    for line in _lines(path):
        step, loss = line.get("step"), line.get("loss")
        if line.get("kind") == STEP and isinstance(step, int) and isinstance(loss, (int, float)):
            yield step, float(loss)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """A line that a killed rank left unfinished is none."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
