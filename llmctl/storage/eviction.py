"""Room in a cache folder: the files that were not used for longest go first, never one that is in use.

A user holds a shared lock of the file itself for as long as it is open or mapped, so the kernel forgets a
user that died. What is in use at once may therefore exceed the limit.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmctl.errors import DeadlineError
from llmctl.storage.faults import explained
from llmctl.storage.files import is_temporary
from llmctl.storage.locks import locked

LOCK_S = 60.0

FREE = 256 << 20
"""Bytes of the disk that stay free whatever the limit says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    path: Path
    size: int
    used: float


def make_room(folder: Path, size: int, limit: int | None) -> None:
    """Remove old files from the cache `folder` until `size` more bytes fit.

    Args:
        limit: bytes that the cache may take; None: half of what it and the free disk have together.

    Raises:
        TransferError, DeadlineError: the folder can't be read or locked.
    """
    with locked(folder / "locks" / "evict", LOCK_S), explained("clean up", str(folder)):
        _remove_unfinished(folder)
        files = sorted(_files(folder), key=lambda file: file.used)
        taken, free = sum(file.size for file in files), shutil.disk_usage(folder).free
        allowed = (taken + free) // 2 if limit is None else limit
        excess = max(taken + size - allowed, size + FREE - free)
        for file in files:
            if excess <= 0:
                return
            if _remove(folder, file.path):
                excess -= file.size


def hold(stream: BinaryIO) -> None:
    """Keep the file of `stream` from being evicted while it, or a map that was made of it, is open."""
    fcntl.flock(stream.fileno(), fcntl.LOCK_SH)


def files_folder(folder: Path) -> Path:
    """Where the copies are, each named by its SHA-256."""
    return folder / "files"


def lock_file(folder: Path, sha256: str) -> Path:
    """The lock of whoever fetches or checks the file with this hash."""
    return folder / "locks" / sha256[:32]


def note_file(folder: Path, path: Path) -> Path:
    """Where the check of `path` is remembered; its time is when the file was last asked for."""
    return folder / "checked" / hashlib.sha256(str(path).encode()).hexdigest()[:32]


def _files(folder: Path) -> Iterator[_Cached]:
    for path in _listed(folder):
        if is_temporary(path.name):
            continue
        with suppress(FileNotFoundError):
            status = path.stat()
            try:
                used = note_file(folder, path).stat().st_mtime
            except FileNotFoundError:
                used = 0.0  # never found right, or forgotten
            yield _Cached(path=path, size=status.st_size, used=used)


def _listed(folder: Path) -> list[Path]:
    files = files_folder(folder)
    return list(files.iterdir()) if files.is_dir() else []


def _remove(folder: Path, path: Path) -> bool:
    """Whether it went; False: someone uses it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    note_file(folder, path).unlink(missing_ok=True)
    return True


def _remove_unfinished(folder: Path) -> None:
    """What a killed download left: nobody holds the lock of its hash."""
    for path in _listed(folder):
        if is_temporary(path.name):
            with suppress(DeadlineError), locked(lock_file(folder, path.name.split(".")[1]), 0.0):
                path.unlink(missing_ok=True)
