"""Waits with a deadline: a result, a deadline, and a cancellation that comes together with either."""

from __future__ import annotations

import asyncio

import pytest

from llmctl.errors import DeadlineError
from llmctl.worker.infer.deadline import bounded, within


def test_a_cancel_beside_the_result_is_not_lost() -> None:
    """Whoever is cancelled in the very turn in which the result comes ends as cancelled."""

    async def race() -> bool:
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(bounded(result, 60.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        result.set_result(1)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert asyncio.run(race())


def test_what_is_too_slow_is_over() -> None:
    """At the deadline the wait says what it was for, and what was waited for has ended."""
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("slow")

    with pytest.raises(DeadlineError, match="the model took more than 0"):
        asyncio.run(within(slow(), 0.01, "the model"))
    assert ended == ["slow"]


def test_results_and_errors_come_through() -> None:
    """In time it is as if there were no deadline."""

    async def failing() -> None:
        raise OSError("no")

    assert asyncio.run(bounded(asyncio.sleep(0, "here"), 60.0)) == "here"
    with pytest.raises(OSError, match="no"):
        asyncio.run(bounded(failing(), 60.0))
