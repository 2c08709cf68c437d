"""Follow a run to its verdict, for every verb that waits for one: `train`, `attach`, `wait`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from llmctl.controller.cli.session import Session
from llmctl.controller.collect.follow import Follower
from llmctl.controller.collect.locate import Located
from llmctl.controller.collect.status import run_view
from llmctl.controller.collect.view import RunView
from llmctl.controller.config.types import Host
from llmctl.controller.execute.stop import stop
from llmctl.controller.execute.watch import Watcher, watch
from llmctl.controller.transport.pool import Connections
from llmctl.errors import DeadlineError, HostErrors, LlmctlError
from llmctl.wire import supervision
from llmctl.wire.records import Event, FollowRequest, StopRequest
from llmctl.wire.states import RunState

PEERS_STOP_GRACE_S = 5.0
LOOK_EVERY_S = 3.0


class Display(Watcher, AbstractContextManager[Any], Protocol):
    """A watcher that needs setting up and tearing down."""

    def news(self, text: str) -> None:
        """What the run's supervisor does, one line."""


def follow_to_end(
    session: Session,
    connections: Connections,
    located: Located,
    display: Display,
    request: FollowRequest,
    *,
    one_fate: bool = True,
) -> RunView:
    """Show the run through all its attempts, until it has its verdict; the final view, written to the
    ledger too.

    KeyboardInterrupt passes through: to the run it means nothing.

    Args:
        one_fate: a node that failed means that the others are stopped. An inference run does without it.
    """
    course = Course(lambda: run_view(connections, located.hosts, session.archive, located.run_id))

    def stop_peers(reason: str) -> None:
        if not course.supervised():
            order = StopRequest(grace_s=PEERS_STOP_GRACE_S, reason=reason)
            stop(connections, located.hosts, session.archive, located.run_id, order)

    offsets: dict[str, dict[str, int]] = {}
    hosts: Sequence[Host] = located.hosts
    with display:
        while True:
            course.follow([host.name for host in hosts])
            follower = Follower(connections, hosts, session.archive, located.run_id, request, offsets=offsets)
            with follower:
                watch(
                    follower,
                    display,
                    stop_peers if one_fate and not _is_inference(located) else None,
                    course.moved_on,
                )
            view = course.settle(display)
            session.remember(view, located.hosts)
            if not course.goes_on(view):
                return view
            wanted = {node.host for node in view.nodes}
            hosts = [host for host in located.hosts if host.name in wanted]


class Course:
    """Where a run is in its attempts, as seen while it is followed. A run without a supervisor has one."""

    def __init__(self, look: Callable[[], RunView]) -> None:
        self._look = look
        self._view: RunView | None = None
        self._followed: set[str] = set()
        self._due = 0.0

    def follow(self, hosts: Sequence[str]) -> None:
        """These hosts are followed from now on."""
        self._followed = set(hosts)

    def supervised(self) -> bool:
        """Somebody else ends what is left of an attempt."""
        told = self._look().supervision
        return told is not None and told.phase != supervision.ENDED

    def moved_on(self) -> bool:
        """The run has its verdict, or another attempt than the one that is followed; looks now and then."""
        if time.monotonic() < self._due or (self._view and self._view.supervision is None):
            return False
        before = self._view
        try:
            self._view = self._look()
        except LlmctlError:
            return False  # the follower tells of lost hosts
        finally:
            self._due = time.monotonic() + LOOK_EVERY_S
        if self._view.supervision is None:
            return False
        other = {node.host for node in self._view.nodes} != self._followed
        later = before is not None and before.attempt != self._view.attempt
        return self._view.final or other or later

    def settle(self, display: Display) -> RunView:
        """The view once an attempt runs again, or the run has its verdict."""
        told = ""
        while True:
            view = self._look_on(display)
            self._view = view
            if view.state is not RunState.RESTARTING:
                return view
            if view.note != told:
                told = view.note
                display.news(told)
            display.tick()
            time.sleep(1.0)

    def _look_on(self, display: Display) -> RunView:
        """Look until a host answers, where a supervisor is known to take care of the run."""
        while True:
            try:
                return self._look()
            except HostErrors:
                if self._view is None or self._view.supervision is None:
                    raise
            display.tick()
            time.sleep(1.0)

    def goes_on(self, view: RunView) -> bool:
        """There is another attempt to follow."""
        return view.supervision is not None and not view.state.ended


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

    def news(self, text: str) -> None:
        self.tick()

    def tick(self) -> None:
        """Raises DeadlineError when the time is up; the run itself goes on."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise DeadlineError(
                f"{self._run_id} has not ended after {self._timeout_s:g} s; it goes on",
                stage="wait",
                hint=detach_hint(self._run_id),
            )
