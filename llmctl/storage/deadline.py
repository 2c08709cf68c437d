"""Calls that may never return (a driver blocked in a socket), under a deadline of ours and with retries.

A thread that missed its deadline can't be stopped from outside. It is told so instead: a driver says `beat`
between two pieces of a long transfer, which raises once nobody waits any more, and names by `on_abandon` what
can be cancelled. Beats also tell a slow transfer, which may go on, from a stalled one.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

from llmctl.errors import DeadlineError, LlmctlError
from llmctl.storage.faults import STAGE, explain

T = TypeVar("T")

TRIES = 7
"""How often a call that failed for a passing reason is made: enough for a server that is restarted."""

TRIES_UNKNOWN = 3
"""The same for a store that has never answered: more likely a wrong address than a passing trouble."""

_LOOK_S = 0.5
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0


class AbandonedError(RuntimeError):
    """Raised inside a call that nobody waits for any more: going on could replace newer data with older."""


class Budget:
    """The time of one call.

    Args:
        deadline_s: for all of it.
        stall_s: between two beats, once there was one.
    """

    def __init__(self, deadline_s: float, stall_s: float) -> None:
        self._deadline_s = deadline_s
        self._end = time.monotonic() + deadline_s
        self._stall_s = min(stall_s, deadline_s)
        self._last: float | None = None
        self._abandoned = False
        self._cancel: Callable[[], object] | None = None

    def left(self) -> float:
        """Seconds until the caller gives up."""
        end = self._end if self._last is None else min(self._end, self._last + self._stall_s)
        return end - time.monotonic()

    @property
    def limit_s(self) -> float:
        """What `left` counts down from."""
        return self._deadline_s if self._last is None else self._stall_s

    def beat(self) -> None:
        """Something moved.

        Raises:
            AbandonedError: nobody waits for this call any more.
        """
        self.check()
        self._last = time.monotonic()

    def check(self) -> None:
        """Nothing moved, but is somebody still waiting?

        Raises:
            AbandonedError: no.
        """
        if self._abandoned:
            raise AbandonedError("given up at its deadline")

    def on_abandon(self, cancel: Callable[[], object]) -> None:
        """What to call when the caller gives up."""
        self._cancel = cancel
        if self._abandoned:
            cancel()

    def abandon(self) -> None:
        self._abandoned = True
        if self._cancel is not None:
            self._cancel()


_own = threading.local()


def budget() -> Budget:
    """That of the call that this thread works for; outside of one, a minute."""
    found: Budget | None = getattr(_own, "budget", None)
    return found or Budget(60.0, 60.0)


@contextmanager
def working_for(own: Budget) -> Iterator[None]:
    """This thread takes part in the call of that budget."""
    _own.budget = own
    try:
        yield
    finally:
        del _own.budget


def call(
    function: Callable[[], T], *, action: str, where: str, deadline_s: float, stall_s: float | None = None
) -> T:
    """What `function` returns, or its failure as one of our errors.

    It runs in a thread of its own, which is abandoned once its time has passed; a daemon thread does not
    keep the process alive.

    Raises:
        DeadlineError: it took longer than `deadline_s` seconds, or nothing moved for `stall_s`.
        NotFoundError, TransferError: it failed.
    """
    own = Budget(deadline_s, deadline_s if stall_s is None else stall_s)
    future: Future[T] = Future()
    name = f"llmctl-{action}"
    try:
        threading.Thread(target=_run, args=(future, function, own), name=name, daemon=True).start()
        while not future.done():
            left = own.left()
            if left <= 0:
                raise _late(action, where, own.limit_s)
            wait([future], timeout=min(left, _LOOK_S))  # a beat in between may bring the end nearer
    finally:
        if not future.done():
            own.abandon()  # also after Ctrl-C: nothing is to appear in the store behind the caller's back
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        raise explain(error, action, where) from error
    raise error


def persist(
    function: Callable[[], T],
    *,
    action: str,
    where: str,
    deadline_s: float,
    stall_s: float,
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
        try:
            left = max(0.0, end - time.monotonic())
            return call(function, action=action, where=where, deadline_s=left, stall_s=stall_s)
        except DeadlineError:
            if last is None:
                raise
            raise _late(action, where, deadline_s, last) from last
        except LlmctlError as error:
            if error.__cause__ is None or turn + 1 == tries or not passing(error.__cause__):
                raise
            last = error
        # Jitter, so that many ranks do not come back at the same moment.
        pause = min(_FIRST_PAUSE_S * 2.0**turn, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311
        time.sleep(max(0.0, min(pause, end - time.monotonic())))
    raise AssertionError("the last try returns or raises")


def _late(action: str, where: str, limit_s: float, last: LlmctlError | None = None) -> DeadlineError:
    """The error of a deadline that passed; `last` is the failure of the try before."""
    before = f"; before that: {last.message.removeprefix(where + ': ')}" if last else ""
    return DeadlineError(
        f"{where}: can't {action}: no answer within {limit_s:.3g} s{before}",
        hint="is the store up and reachable from here?",
        stage=STAGE,
    )


def _run(future: Future[T], function: Callable[[], T], own: Budget) -> None:
    try:
        with working_for(own):
            future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - carried over to the waiting thread
        future.set_exception(error)
