"""One rank's part of a run: what it was told, where it stands, whom it tells. All pieces take this value."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llmctl.wire import environment
from llmctl.wire.layout import AttemptLayout
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.specs import NodeSpec
from llmctl.worker.metrics import Metrics
from llmctl.worker.session import Session, open_session
from llmctl.worker.stop import StopSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One rank of a run.

    Attributes:
        spec: what this host was told; `recipe`: its settings of the training.
        session: rank, world, device, host, and how ranks agree.
        run_dir: this host's run directory.
        metrics: lines for `llmctl status` and the log; silent on a rank other than 0.
        stop: whether SIGTERM has asked for the end.
    """

    spec: NodeSpec
    recipe: RecipeSpec
    session: Session
    run_dir: str
    metrics: Metrics
    stop: StopSignal


@contextmanager
def open_job(spec: NodeSpec, recipe: RecipeSpec, run_dir: str, stop: StopSignal) -> Iterator[Job]:
    """Join the other ranks. The process group is left in order only where nothing was raised inside: else
    this rank would wait for those that know of no failure."""
    session = open_session(spec)
    board = AttemptLayout(os.environ.get(environment.ATTEMPT_DIR, run_dir)).tensorboard
    metrics = Metrics(
        path=os.environ.get(environment.METRICS) if session.is_first else None,
        speaks=session.is_first,
        tensorboard=board if session.is_first and recipe.tensorboard else None,
    )
    try:
        yield Job(spec=spec, recipe=recipe, session=session, run_dir=run_dir, metrics=metrics, stop=stop)
    finally:
        metrics.close()
    session.close()
