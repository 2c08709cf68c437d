"""Locks among the processes of one host; the kernel drops one when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.errors import DeadlineError
from llmctl.storage.faults import explained

_POLL_S = 0.05


@contextmanager
def locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold the exclusive lock `path`, a file made for it, or a folder that is there.

    Raises:
        DeadlineError: another process held it for `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    descriptor = _acquire(path)
    while descriptor is None:
        if time.monotonic() >= end:
            raise DeadlineError(f"{path}: locked by another process for {deadline_s:g} s")
        time.sleep(_POLL_S)
        descriptor = _acquire(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """A locked descriptor; None: another process has it, try again."""
    with explained("lock", str(path)):
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
    if _is_same(descriptor, path):
        return descriptor
    # Its last holder removed it between our open and our lock: this lock guards nothing.
    os.close(descriptor)
    return None


def _open(path: Path) -> int:
    if path.is_dir():
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
