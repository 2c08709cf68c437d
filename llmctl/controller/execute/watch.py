"""Watch a run to its end: hand what arrives to a watcher, and hold the nodes to one fate.

When one node has failed, its peers can only wait for it. After a grace time, in which they normally end
by themselves with their own last words, they are stopped.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Any, Protocol

from llmctl.controller.collect.follow import Back, Follower, GaveUp, Got, Lost, failed
from llmctl.errors import IntegrityError, LlmctlError
from llmctl.wire import codec
from llmctl.wire.metrics import CheckpointLine, StepLine
from llmctl.wire.records import Event, Frame

PEERS_GRACE_S = 10.0

LINE_END = re.compile(r"\r\n|\r|\n")
"""What ends a line of a log; str.splitlines would also break at form feeds and Unicode separators."""

NUMBERS = frozenset(
    f.name for kind in (StepLine, CheckpointLine) for f in fields(kind) if f.name not in ("kind", "uri")
)

RANK_LOG = re.compile(r"rank-(\d+)\.log\Z")


class Watcher(Protocol):
    """What a display has to understand. Called from one thread, in the order of arrival."""

    def metric(self, host: str, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl (wire/metrics.py)."""

    def event(self, host: str, event: Event) -> None:
        """One line of events.jsonl."""

    def log(self, host: str, rank: int | None, lines: list[str]) -> None:
        """Lines of a rank's log; rank None: the launcher's."""

    def lost(self, host: str, error: LlmctlError) -> None:
        """Contact with a host was lost; the run there may be fine."""

    def back(self, host: str) -> None:
        """Contact is there again."""

    def tick(self) -> None:
        """A moment without news."""


def watch(
    follower: Follower,
    watcher: Watcher,
    stop_peers: Callable[[str], None] | None,
    over: Callable[[], bool] = lambda: False,
) -> None:
    """Until every node has ended, or can't be asked any more.

    Args:
        over: asked again and again once a node has failed or can't be reached: has the run moved on?
        stop_peers: ends the whole run, given the reason; called at most once, from a thread of its own.
            None: only look on.
    """
    failed_at: float | None = None
    lost: set[str] = set()
    stopper: threading.Thread | None = None
    for item in follower.items():
        if isinstance(item, Got):
            _frame(item.host, item.frame, watcher)
        elif isinstance(item, Lost | GaveUp):
            watcher.lost(item.host, item.error)
            lost.add(item.host)
        elif isinstance(item, Back):
            watcher.back(item.host)
            lost.discard(item.host)
        else:
            watcher.tick()
        if failed_at is None and failed(item):
            failed_at, failed_host = time.monotonic(), getattr(item, "host", "")
        if (lost or failed_at) and over():
            return
        if stop_peers and failed_at and stopper is None and time.monotonic() - failed_at > PEERS_GRACE_S:
            stopper = threading.Thread(target=stop_peers, args=(f"{failed_host} failed",), daemon=True)
            stopper.start()


def _frame(host: str, frame: Frame, watcher: Watcher) -> None:
    if not frame.file:
        watcher.tick()
        return
    name = PurePosixPath(frame.file).name
    lines = LINE_END.split(frame.text.removesuffix("\n"))
    if name == "metrics.jsonl":
        for line in lines:
            document = _json_object(line)
            if document is not None:
                watcher.metric(host, document)
    elif name == "events.jsonl":
        for line in lines:
            event = _event(line)
            if event is not None:
                watcher.event(host, event)
    else:
        found = RANK_LOG.search(name)
        watcher.log(host, int(found.group(1)) if found else None, lines)


def _json_object(line: str) -> dict[str, Any] | None:
    """Scripts that are not ours append to metrics.jsonl too: what is no JSON object is passed over."""
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return _numbers_only(document) if isinstance(document, dict) else None


def _numbers_only(document: dict[str, Any]) -> dict[str, Any]:
    """Without known keys that hold no number: anyone may write metrics, and a display must not trip."""
    return {key: value for key, value in document.items() if key not in NUMBERS or _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _event(line: str) -> Event | None:
    try:
        return codec.loads(Event, line)
    except IntegrityError:
        return None
