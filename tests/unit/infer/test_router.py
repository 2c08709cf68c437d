"""The router: who has room gets work, nothing is lost or done twice when a replica goes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.wire.infer import CANCEL, ERROR, STOP, Answer, Order, SamplingSpec
from llmctl.worker.infer.router import Again, QueueFullError, Router, Station


class Sent:
    """A replica that only remembers what it was told."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def send(self, order: Order) -> None:
        self.orders.append(order)


def order(tokens: int = 3, new: int = 5) -> Order:
    return Order(op="add", tokens=tuple(range(tokens)), sampling=SamplingSpec(max_tokens=new))


def station(router: Router, index: int, capacity: int) -> tuple[Station, Sent]:
    sent = Sent()
    found = Station(index, sent, capacity, 0.0)
    router.join(found)
    return found, sent


def test_work_goes_to_the_least_loaded_by_tokens_and_waits_where_none_has_room() -> None:
    """One long request weighs as much as several short ones."""
    router = Router(clock=lambda: 0.0)
    _, first = station(router, 0, 3)
    _, second = station(router, 1, 3)
    router.submit(order(new=100), retries=0)
    for _ in range(3):
        router.submit(order(), retries=0)
    assert (len(first.orders), len(second.orders)) == (1, 3)
    router.submit(order(), retries=0)
    router.submit(order(), retries=0)
    assert (len(first.orders), router.waiting, router.running) == (3, 0, 6)
    router.submit(order(), retries=0)
    assert router.waiting == 1


def test_a_full_queue_refuses_only_when_nobody_has_room() -> None:
    """`limit` 0 means no waiting, not no work."""
    router = Router(limit=0, clock=lambda: 0.0)
    station(router, 0, 1)
    router.submit(order(), retries=0)
    with pytest.raises(QueueFullError):
        router.submit(order(), retries=0)


def test_a_lost_replicas_requests_start_over_unless_shown() -> None:
    """In their old order before what waits; what somebody has seen fails, as does one too often lost."""
    router = Router(clock=lambda: 0.0)
    lost, _ = station(router, 0, 3)
    jobs = [router.submit(order(), retries=1) for _ in range(4)]
    jobs[1].shown = True
    router.leave(lost, "killed")
    assert isinstance(jobs[0].inbox.get_nowait(), Again)
    failed = jobs[1].inbox.get_nowait()
    assert isinstance(failed, Answer)
    assert (failed.finish, failed.error) == (ERROR, "killed")
    again, sent = station(router, 1, 9)
    assert [one.id for one in sent.orders] == [jobs[n].order.id for n in (0, 2, 3)]
    router.leave(again, "killed, too")
    assert jobs[0].inbox.get_nowait() == Answer(id=jobs[0].order.id, finish=ERROR, error="killed, too")


def test_cancelling_tells_the_replica_or_leaves_the_queue() -> None:
    """A cancelled request keeps its slot until the replica says that it has ended."""
    router = Router(clock=lambda: 0.0)
    one, sent = station(router, 0, 1)
    running, waiting = router.submit(order(), retries=1), router.submit(order(), retries=1)
    router.cancel(waiting)
    router.cancel(running)
    assert router.waiting == 0
    assert sent.orders[-1] == Order(op=CANCEL, id=running.order.id)
    assert not one.has_room
    router.hear(one, Answer(id=running.order.id, finish="cancelled"))
    assert one.has_room


@given(
    st.lists(st.tuples(st.sampled_from(["submit", "finish", "lose", "join"]), st.integers(0, 5)), max_size=60)
)
@settings(max_examples=60, deadline=None)
def test_every_request_ends_exactly_once(steps: list[tuple[str, int]]) -> None:
    """Whatever replicas do: in the end each request has one last answer, and none is forgotten."""
    router = Router(clock=lambda: 0.0)
    jobs = []
    for what, number in [*steps, ("join", 0)]:
        stations = router.stations
        if what == "submit":
            jobs.append(router.submit(order(), retries=100))
        elif what == "join":
            station(router, number, 1 + number)
        elif stations and what == "lose":
            router.leave(stations[number % len(stations)], "lost")
        elif stations:
            _finish_one(router, stations[number % len(stations)])
    while router.running:
        _finish_one(router, next(one for one in router.stations if one.jobs))
    assert router.waiting == 0
    assert [_last_answers(job.inbox) for job in jobs] == [1] * len(jobs)


def _finish_one(router: Router, at: Station) -> None:
    for name in list(at.jobs)[:1]:
        router.hear(at, Answer(id=name, tokens=(1,), finish=STOP))


def _last_answers(inbox: asyncio.Queue[Answer | Again]) -> int:
    found = 0
    while not inbox.empty():
        answer = inbox.get_nowait()
        found += isinstance(answer, Answer) and answer.finish is not None
    return found
