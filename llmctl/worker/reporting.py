"""`report`: how any training script shows its progress in `llmctl status`. Standard library only."""

from __future__ import annotations

import functools
import json
import os
import time
from typing import Union

from llmctl.wire import environment
from llmctl.wire.metrics import STEP
from llmctl.worker.pace import Pace

Scalar = Union[float, int, str, bool, None]  # evaluated, and a script may run on Python 3.9


def report(*, step: int, total: int | None = None, loss: float | None = None, **more: Scalar) -> None:
    """Append one step line to $LLMCTL_METRICS. Does nothing outside a run; on a rank other than 0 it only
    notes how far the rank has come: call it on all of them, and a hang is found sooner and named better.

    Args:
        step: optimizer steps done, counted from 1.
        total: steps of the whole run, for progress and ETA.
        loss: mean loss of the step; call `.item()` on a tensor first.
        more: further numbers; `lr`, `grad_norm`, `tokens_per_s`, `data_wait` (0..1) and `memory_bytes` are
            shown, others are kept in the file.
    """
    path = os.environ.get(environment.METRICS)
    rank = os.environ.get("RANK", "0")
    if path and rank.isdecimal():
        _pace(int(rank)).tick(step, total)
    if not path or rank != "0":
        return
    line = {"kind": STEP, "t": time.time(), "step": step, "total": total, "loss": loss, **more}
    append_line(path, json.dumps(line, separators=(",", ":")))


@functools.cache
def _pace(rank: int) -> Pace:
    return Pace.of_rank(rank)


def append_line(path: str, line: str) -> None:
    """Append `line` in one write, so that a reader never sees two lines run together."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, (line + "\n").encode())
    finally:
        os.close(descriptor)
