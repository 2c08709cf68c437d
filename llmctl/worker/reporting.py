"""`report`: how any training script shows its progress in `llmctl status`. Standard library only."""

from __future__ import annotations

import json
import os
import time

from llmctl.wire import environment
from llmctl.wire.metrics import STEP

Scalar = float | int | str | bool | None


def report(*, step: int, total: int | None = None, loss: float | None = None, **more: Scalar) -> None:
    """Append one step line to $LLMCTL_METRICS. Does nothing outside a run, or on a rank other than 0.

    Args:
        step: optimizer steps done, counted from 1.
        total: steps of the whole run, for progress and ETA.
        loss: mean loss of the step; call `.item()` on a tensor first.
        more: further numbers; `lr`, `grad_norm`, `tokens_per_s`, `data_wait` (0..1) and `memory_bytes` are
            shown, others are kept in the file.
    """
    path = os.environ.get(environment.METRICS)
    if not path or os.environ.get("RANK", "0") != "0":
        return
    line = {"kind": STEP, "t": time.time(), "step": step, "total": total, "loss": loss, **more}
    append_line(path, json.dumps(line, separators=(",", ":")))


def append_line(path: str, line: str) -> None:
    """Append `line` in one write, so that a reader never sees two lines run together."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, (line + "\n").encode())
    finally:
        os.close(descriptor)
