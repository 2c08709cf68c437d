"""How far an inference run is, as metric lines that `status` and whoever follows the run understand."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from llmctl.wire import environment
from llmctl.wire.codec import encode
from llmctl.wire.metrics import StepLine
from llmctl.worker.reporting import append_line

EVERY_S = 1.0


class Progress:
    """Counts what is done; a `step` of an inference run is one line of a batch, or one request."""

    def __init__(self) -> None:
        self._path = os.environ.get(environment.METRICS)
        self._began = self._since = time.monotonic()
        self._done = self._tokens = self._tokens_then = self._written = 0

    def count(self, done: int, tokens: int) -> None:
        """So many requests more, with so many tokens."""
        self._done += done
        self._tokens += tokens

    def tell(self, total: int | None, *, last: bool = False) -> None:
        """Write a line where something has changed and the last one is a moment old. The speed is that since
        then; of a last line that comes sooner, that of the whole run, its start included.

        Not before the first token: lines that are no requests are done at once, which foretells nothing.
        """
        now = time.monotonic()
        early = now - self._since < EVERY_S or self._done == self._written or not self._tokens
        if early and not last:
            return
        since, tokens = self._since, self._tokens - self._tokens_then
        if now - since < EVERY_S:  # only the last line: a few tokens over next to no time say nothing
            since, tokens = self._began, self._tokens
        speed = tokens / max(1e-6, now - since)
        self._since, self._tokens_then, self._written = now, self._tokens, self._done
        self.write(
            StepLine(
                t=time.time(),
                step=self._done,
                total=total,
                tokens=round(self._tokens / self._done) if self._done else None,
                tokens_per_s=round(speed, 1),
            )
        )

    def write(self, line: Any) -> None:
        """One line of metrics.jsonl."""
        if self._path:
            append_line(self._path, json.dumps(encode(line), separators=(",", ":")))
