"""SIGTERM as a polite request: finish the step, keep the progress, then leave with 143.

stop.json beside it says how much time there is, and whether a last checkpoint is what was asked for.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from llmctl.errors import IntegrityError
from llmctl.wire.codec import loads
from llmctl.wire.layout import RunLayout
from llmctl.wire.records import StopRequest

EXIT_CODE = 128 + signal.SIGTERM


def stop_order(run_dir: str) -> StopRequest | None:
    """What was asked for; None: only SIGTERM came, such as from a host that goes down."""
    try:
        return loads(StopRequest, Path(RunLayout(run_dir).stop_request).read_bytes())
    except (OSError, IntegrityError):
        return None


class StopSignal:
    """Remembers when SIGTERM came; further ones change nothing."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def install(self) -> None:
        """Listen from now on; main thread only."""
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    @property
    def asked(self) -> bool:
        return self._asked_at is not None

    def seconds_since(self) -> float:
        """Seconds since the first SIGTERM; 0 where none has come."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at
