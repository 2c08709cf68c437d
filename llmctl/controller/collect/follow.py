"""Follow a run on all its hosts at once: lines as they come, across lost connections, without a gap.

One thread per host reads the agent's frames. When the connection is lost the thread comes back with the
byte offsets it already has; the job on the host never notices. Losing contact is an item of the stream
(`Lost`), never its end: the stream ends only when every host has said that its node ended.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.errors import (
    DeadlineError,
    HostUnreachableError,
    LlmctlError,
    RemoteCommandError,
)
from llmctl.wire.records import FollowRequest, Frame
from llmctl.wire.states import NodeState

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0
TICK_S = 0.2
QUEUE_LENGTH = 4096
"""Frames that wait for a slow reader; then the hosts are read more slowly: memory stays bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """A frame of one host: text of a file, a heartbeat, or the end."""

    host: str
    frame: Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Contact with one host was lost, or is still lost; the run there is in an unknown state."""

    host: str
    error: LlmctlError


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """Contact is there again; what was missed follows."""

    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """This host will not be asked again: its key changed, or it has no such run."""

    host: str
    error: LlmctlError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Nothing happened for a moment: time to redraw."""


Item = Got | Lost | Back | GaveUp | Tick


class Follower:
    """The merged stream of one run's hosts. A context manager; leaving it ends the threads' work."""

    def __init__(
        self,
        connections: Connections,
        hosts: Sequence[Host],
        archive: AgentArchive,
        run_id: str,
        request: FollowRequest,
        *,
        retries: int | None = None,
        offsets: dict[str, dict[str, int]] | None = None,
    ) -> None:
        """`retries`: how often a lost host is tried again before it is given up; None: without end.
        `offsets`: by host, how far an earlier follower has come; kept current.
        """
        self._connections = connections
        self._hosts = tuple(hosts)
        self._archive = archive
        self._run_id = run_id
        self._request = request
        self._retries = retries
        self._offsets = {} if offsets is None else offsets
        self._queue: queue.Queue[Item] = queue.Queue(QUEUE_LENGTH)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(host,), daemon=True) for host in self._hosts
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()

    def items(self) -> Iterator[Item]:
        """Items of all hosts until every one has ended or was given up; `Tick` in between."""
        open_hosts = {host.name for host in self._hosts}
        while open_hosts:
            try:
                item = self._queue.get(timeout=TICK_S)
            except queue.Empty:
                yield Tick()
                continue
            yield item
            if isinstance(item, GaveUp) or (isinstance(item, Got) and item.frame.end):
                open_hosts.discard(item.host)

    def _follow(self, host: Host) -> None:
        offsets = self._offsets.setdefault(host.name, dict(self._request.offsets))
        wait_s, lost, tries = FIRST_RETRY_S, False, 0
        while not self._stop.is_set():
            try:
                if self._read(host, offsets, announce_back=lost):
                    return
                error: LlmctlError = HostUnreachableError(
                    "the stream ended without an end", host=host.name, stage="follow"
                )
            except (HostUnreachableError, DeadlineError, RemoteCommandError) as caught:
                error = caught
            except LlmctlError as caught:
                self._put(GaveUp(host=host.name, error=caught))
                return
            except Exception as caught:  # noqa: BLE001 - a thread that dies in silence would be waited for
                error = RemoteCommandError(f"can't follow: {caught!r}", host=host.name, stage="follow")
                self._put(GaveUp(host=host.name, error=error))
                return
            tries += 1
            if self._retries is not None and tries > self._retries:
                self._put(GaveUp(host=host.name, error=error))
                return
            wait_s = FIRST_RETRY_S if not lost else min(LONGEST_RETRY_S, wait_s * 2)
            lost = True
            self._put(Lost(host=host.name, error=error))
            self._stop.wait(wait_s)

    def _read(self, host: Host, offsets: dict[str, int], *, announce_back: bool) -> bool:
        """Read until the end frame (True) or the end of the connection; keeps `offsets` current."""
        client = AgentClient(self._connections.get(host.name), host, self._archive)
        request = replace(self._request, offsets=dict(offsets))
        with client.follow(self._run_id, request) as frames:
            for frame in frames:
                if self._stop.is_set():
                    return True
                if announce_back:
                    self._put(Back(host=host.name))
                    announce_back = False
                if frame.file:
                    offsets[frame.file] = frame.offset
                self._put(Got(host=host.name, frame=frame))
                if frame.end:
                    return True
        return False

    def _put(self, item: Item) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=TICK_S)
                return
            except queue.Full:
                continue


def failed(item: Item) -> bool:
    """Whether this item says that a node has failed."""
    return isinstance(item, Got) and item.frame.state is NodeState.FAILED
