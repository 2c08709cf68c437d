"""Waiting with a deadline, in a way that never loses a cancellation.

Where a cancel and the result come in the same turn of the loop, `asyncio.wait_for` before Python 3.12 returns
the result as if nobody had cancelled it: a replica's supervisor that was told to end then lived on, and the
run with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from llmctl.errors import DeadlineError

T = TypeVar("T")


async def bounded(waited: Awaitable[T], seconds: float) -> T:
    """`waited`, which is cancelled and over in any case when this ends. Raises asyncio.TimeoutError."""
    task = asyncio.ensure_future(waited)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not done:
        raise asyncio.TimeoutError
    return task.result()


async def within(waited: Awaitable[T], seconds: float, what: str) -> T:
    """The same with DeadlineError, which says `what` took too long."""
    try:
        return await bounded(waited, seconds)
    except asyncio.TimeoutError:
        raise DeadlineError(f"{what} took more than {seconds:g} s") from None
