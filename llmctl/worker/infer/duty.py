"""What a batch or a server is given to do its work with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmctl.wire.serving import InferSpec
from llmctl.worker.infer.modelfiles import ModelText
from llmctl.worker.infer.progress import Progress
from llmctl.worker.infer.router import Router
from llmctl.worker.infer.supervisor import Supervisor


@dataclass(frozen=True)
class Duty:
    """The run as its work sees it.

    Attributes:
        model: tokenizer and shape, being read while the replicas start.
        stopping: set when the run was told to stop; requests then have `drain_s` seconds to finish.
        folder: the attempt's directory.
        note: tells people something, one line.
    """

    infer: InferSpec
    router: Router
    model: asyncio.Future[ModelText]
    stopping: asyncio.Event
    drain_s: float
    progress: Progress
    supervisors: tuple[Supervisor, ...]
    folder: Path
    note: Callable[[str], None]
