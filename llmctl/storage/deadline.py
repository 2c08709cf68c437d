"""Calls that may never return (a driver blocked in a socket), under a deadline of ours and with retries.

A thread that missed its deadline can't be stopped from outside. It is told so instead: whatever loops inside
a driver asks `check` between two pieces, and what can be cancelled is given `remaining` as its timeout.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from llmctl.errors import DeadlineError, LlmctlError
from llmctl.storage.faults import STAGE, explain

T = TypeVar("T")

TRIES = 7
"""How often a call that failed for a passing reason is made: enough for a server that is restarted."""

TRIES_UNKNOWN = 3
"""The same for a store that has never answered: more likely a wrong address than a passing trouble."""

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_CLEANING_S = 0.5
"""A cancelled call gets so long to give its own error, which says more than that time is over."""


class AbandonedError(RuntimeError):
    """Raised inside a call that nobody waits for any more."""


class _Budget:
    """What a thread that works for a call knows about its deadline."""

    def __init__(self, deadline_s: float) -> None:
        self.end = time.monotonic() + deadline_s
        self.abandoned = threading.Event()


_own = threading.local()


def remaining() -> float:
    """Seconds left to the call that this thread works for; never 0, which drivers take for `no limit`."""
    budget: _Budget | None = getattr(_own, "budget", None)
    return 60.0 if budget is None else max(0.01, budget.end - time.monotonic())


def check() -> None:
    """Between two pieces of a long transfer.

    Raises:
        AbandonedError: nobody waits for this call any more; going on could replace newer data with older.
    """
    budget: _Budget | None = getattr(_own, "budget", None)
    if budget is not None and (budget.abandoned.is_set() or time.monotonic() > budget.end + _CLEANING_S):
        raise AbandonedError("given up at its deadline")


def call(function: Callable[[], T], *, action: str, where: str, deadline_s: float) -> T:
    """What `function` returns, or its failure as one of our errors.

    It runs in a thread of its own, which is abandoned once the deadline has passed; a daemon thread does not
    keep the process alive.

    Raises:
        DeadlineError: it took longer than `deadline_s` seconds.
        NotFoundError, TransferError: it failed.
    """
    budget = _Budget(deadline_s)
    error = None
    future: Future[T] = Future()
    name = f"llmctl-{action}"
    threading.Thread(target=_run, args=(future, function, budget), name=name, daemon=True).start()
    if wait([future], timeout=deadline_s + _CLEANING_S).done:
        error = future.exception()
        if error is None:
            return future.result()
    else:
        budget.abandoned.set()
    if error is None or (isinstance(error, TimeoutError) and time.monotonic() >= budget.end):
        raise late(action, where, deadline_s) from error
    if isinstance(error, Exception):
        raise explain(error, action, where) from error
    raise error


def persist(
    function: Callable[[], T],
    *,
    action: str,
    where: str,
    deadline_s: float,
    passing: Callable[[BaseException], bool],
    tries: int = TRIES,
) -> T:
    """`call`, made again after a growing, random pause where `passing` says that the failure may pass.

    All tries together have `deadline_s`. `function` must bear being repeated after an unclear end.

    Raises:
        DeadlineError: no answer in time; names the failure before it where there was one.
        NotFoundError, TransferError: the last failure.
    """
    end = time.monotonic() + deadline_s
    last: LlmctlError | None = None
    for turn in range(tries):
        left = end - time.monotonic()
        if last is not None and left <= 0:
            raise late(action, where, deadline_s, last) from last
        try:
            return call(function, action=action, where=where, deadline_s=left)
        except DeadlineError:
            raise late(action, where, deadline_s, last) from last
        except LlmctlError as error:
            if error.__cause__ is None or turn + 1 == tries or not passing(error.__cause__):
                raise
            last = error
        # Jitter, so that many ranks do not come back at the same moment.
        pause = min(_FIRST_PAUSE_S * 2.0**turn, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311
        time.sleep(max(0.0, min(pause, end - time.monotonic())))
    raise AssertionError("the last try returns or raises")


def late(action: str, where: str, deadline_s: float, last: LlmctlError | None = None) -> DeadlineError:
    """The error of a deadline that passed; `last` is the failure of the try before."""
    before = f"; before that: {last.message.removeprefix(where + ': ')}" if last else ""
    return DeadlineError(
        f"{where}: can't {action}: no answer within {deadline_s:.3g} s{before}",
        hint="is the store up and reachable from here?",
        stage=STAGE,
    )


def _run(future: Future[T], function: Callable[[], T], budget: _Budget) -> None:
    _own.budget = budget
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - carried over to the waiting thread
        future.set_exception(error)
