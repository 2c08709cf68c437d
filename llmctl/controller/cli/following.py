"""Follow a run to its verdict, for every verb that waits for one: `train`, `attach`, `wait`."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, Protocol

from llmctl.controller.cli.session import Session
from llmctl.controller.collect.follow import Follower
from llmctl.controller.collect.locate import Located
from llmctl.controller.collect.status import run_view
from llmctl.controller.collect.view import RunView
from llmctl.controller.execute.stop import stop
from llmctl.controller.execute.watch import Watcher, watch
from llmctl.controller.transport.pool import Connections
from llmctl.errors import DeadlineError, LlmctlError
from llmctl.wire.records import Event, FollowRequest, StopRequest

PEERS_STOP_GRACE_S = 5.0


class Display(Watcher, AbstractContextManager[Any], Protocol):
    """A watcher that needs setting up and tearing down."""


def follow_to_end(
    session: Session,
    connections: Connections,
    located: Located,
    display: Display,
    request: FollowRequest,
    *,
    one_fate: bool = True,
) -> RunView:
    """Show the run until all its nodes have ended; the final view, written to the ledger too.

    KeyboardInterrupt passes through: to the run it means nothing.

    Args:
        one_fate: a node that failed means that the others are stopped. An inference run does without it.
    """

    def stop_peers(reason: str) -> None:
        order = StopRequest(grace_s=PEERS_STOP_GRACE_S, reason=reason)
        stop(connections, located.hosts, session.archive, located.run_id, order)

    follower = Follower(connections, located.hosts, session.archive, located.run_id, request)
    with display, follower:
        watch(follower, display, stop_peers if one_fate and not _is_inference(located) else None)
    view = run_view(connections, located.hosts, session.archive, located.run_id)
    session.remember(view, located.hosts)
    return view


def _is_inference(located: Located) -> bool:
    return bool(located.record and "infer" in located.record.job)


def detach_hint(run_id: str) -> str:
    """What Ctrl-C and `-d` print."""
    return f"llmctl attach {run_id} · llmctl status · llmctl stop {run_id}"


class Silent:
    """A display that shows nothing and gives up at a deadline."""

    def __init__(self, run_id: str, timeout_s: float | None) -> None:
        self._run_id = run_id
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._timeout_s = timeout_s

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Nothing was set up."""

    def metric(self, host: str, line: dict[str, Any]) -> None:
        self.tick()

    def event(self, host: str, event: Event) -> None:
        self.tick()

    def log(self, host: str, rank: int | None, lines: list[str]) -> None:
        self.tick()

    def lost(self, host: str, error: LlmctlError) -> None:
        self.tick()

    def back(self, host: str) -> None:
        self.tick()

    def tick(self) -> None:
        """Raises DeadlineError when the time is up; the run itself goes on."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise DeadlineError(
                f"{self._run_id} has not ended after {self._timeout_s:g} s; it goes on",
                stage="wait",
                hint=detach_hint(self._run_id),
            )
