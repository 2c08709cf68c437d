"""What a batch or a server is given to do its work with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from llmctl.wire.serving import InferSpec
from llmctl.worker.infer.modelfiles import ModelText
from llmctl.worker.infer.progress import Progress
from llmctl.worker.infer.router import Router
from llmctl.worker.infer.supervisor import Supervisor


class Stop:
    """Whether the run was told to stop, and for how long requests may go on after that."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.drain_s = 0.0

    def ask(self, drain_s: float) -> None:
        """The first asking counts: every host of a run is told."""
        if not self.asked.is_set():
            self.drain_s = drain_s
            self.asked.set()


@dataclass(frozen=True)
class Duty:
    """The run as its work sees it.

    Attributes:
        model: tokenizer and shape, being read while the replicas start.
        note: tells people something, one line.
    """

    infer: InferSpec
    router: Router
    model: asyncio.Future[ModelText]
    stop: Stop
    progress: Progress
    supervisors: tuple[Supervisor, ...]
    note: Callable[[str], None]
