"""Requests and the replicas that work on them: one queue, from which a replica takes when it has room.

So work is split by how fast it is done, not by count. A request whose replica is lost goes back to the head
of the queue if its owner may still start over; an owner who has shown some of it to somebody may not.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from llmctl.errors import DeadlineError
from llmctl.wire.infer import ADD, CANCEL, ERROR, Answer, Order


def capacity(slots: int) -> int:
    """Requests that a replica with so many slots is given at once: a few wait there, so it never runs dry;
    more would be work that an idle replica can't take."""
    return slots + max(1, slots // 4)


class QueueFullError(DeadlineError):
    """No replica has room and enough requests wait already."""


class Sender(Protocol):
    """The part of ReplicaClient that is needed here."""

    def send(self, order: Order) -> None: ...


@dataclass(frozen=True)
class Again:
    """To a request's owner: all that came so far is void, the work starts over on another replica."""


@dataclass(eq=False)
class Job:
    """One request on its way.

    Attributes:
        retries: how often it may start over.
        shown: its owner has passed on some of what came, so it can't start over any more.
        inbox: what the owner reads: answers, the last one with `finish`; `Again` in between.
    """

    order: Order
    retries: int
    shown: bool = False
    inbox: asyncio.Queue[Answer | Again] = field(default_factory=asyncio.Queue)
    station: Station | None = None

    @property
    def work(self) -> int:
        """How much it is, in tokens that may be read or made."""
        return len(self.order.tokens) + self.order.sampling.max_tokens


class Station:
    """One serving replica as the router sees it.

    Attributes:
        heard_at: when it last said something, by the clock of the event loop.
        answered: requests that it has brought to an end.
    """

    def __init__(self, index: int, sender: Sender, capacity: int, now: float) -> None:
        self.index = index
        self.sender = sender
        self.capacity = capacity
        self.heard_at = now
        self.answered = 0
        self.jobs: dict[str, Job] = {}

    @property
    def load(self) -> int:
        return sum(job.work for job in self.jobs.values())

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < self.capacity


class Router:
    """The queue and its replicas. All methods are called in the event loop's thread.

    Args:
        limit: requests that may wait; None: the callers hold themselves back.
        clock: seconds, monotonic.
    """

    def __init__(self, *, limit: int | None = None, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._waiting: deque[Job] = deque()
        self._stations: list[Station] = []
        self._ids = itertools.count(1)
        self.retried = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(len(station.jobs) for station in self._stations)

    @property
    def stations(self) -> tuple[Station, ...]:
        return tuple(self._stations)

    def submit(self, order: Order, *, retries: int) -> Job:
        """Take a request; its id becomes one of ours. Raises QueueFullError."""
        if self._limit is not None and len(self._waiting) >= self._limit and not self._free():
            raise QueueFullError(f"{len(self._waiting)} requests wait already", stage="infer")
        job = Job(order=replace(order, op=ADD, id=f"r{next(self._ids)}"), retries=retries)
        self._waiting.append(job)
        self._pump()
        return job

    def cancel(self, job: Job) -> None:
        """Nobody wants it any more. Its slot is free again when the replica says that it has ended."""
        if job in self._waiting:
            self._waiting.remove(job)
        elif job.station is not None:
            job.station.sender.send(Order(op=CANCEL, id=job.order.id))
        job.retries = 0

    def join(self, station: Station) -> None:
        """A replica is ready for work."""
        self._stations.append(station)
        self._pump()

    def leave(self, station: Station, why: str) -> None:
        """A replica takes no more work; what it had starts over or fails. Fine for one that never came."""
        if station in self._stations:
            self._stations.remove(station)
        lost, station.jobs = list(station.jobs.values()), {}
        for job in reversed(lost):
            job.station = None
            if job.retries > 0 and not job.shown:
                job.retries -= 1
                self.retried += 1
                job.inbox.put_nowait(Again())
                self._waiting.appendleft(job)
            else:
                job.inbox.put_nowait(Answer(id=job.order.id, finish=ERROR, error=why))
        self._pump()

    def hear(self, station: Station, answer: Answer) -> None:
        """An answer of a replica goes to the request's owner."""
        station.heard_at = self._clock()
        job = station.jobs.get(answer.id)
        if job is None:
            return
        if answer.finish is not None:
            del station.jobs[answer.id]
            station.answered += 1
            job.station = None
        job.inbox.put_nowait(answer)
        if answer.finish is not None:
            self._pump()

    def _free(self) -> bool:
        return any(station.has_room for station in self._stations)

    def _pump(self) -> None:
        while self._waiting:
            free = [station for station in self._stations if station.has_room]
            if not free:
                return
            station = min(free, key=lambda one: one.load)
            job = self._waiting.popleft()
            if not station.jobs:
                station.heard_at = self._clock()  # silence counts from the moment when there is work
            station.jobs[job.order.id] = job
            job.station = station
            station.sender.send(job.order)
