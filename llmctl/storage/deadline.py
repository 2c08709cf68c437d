"""Calls that may never return (a driver blocked in a socket) under a deadline of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from llmctl.errors import DeadlineError
from llmctl.storage.faults import STAGE, explain

T = TypeVar("T")


def call(function: Callable[[], T], *, action: str, where: str, deadline_s: float) -> T:
    """What `function` returns, or its failure as one of our errors.

    It runs in a thread of its own, which is abandoned once the deadline has passed: drivers have no way to
    cancel a blocked call, and a daemon thread does not keep the process alive.

    Raises:
        DeadlineError: it took longer than `deadline_s` seconds.
        NotFoundError, TransferError: it failed.
    """
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(future, function), name=f"llmctl-{action}", daemon=True).start()
    if not wait([future], timeout=deadline_s).done:
        raise DeadlineError(
            f"{where}: can't {action}: no answer within {deadline_s:.3g} s",
            hint="is the store up and reachable from here?",
            stage=STAGE,
        )
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        raise explain(error, action, where) from error
    raise error


def _run(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - carried over to the waiting thread
        future.set_exception(error)
