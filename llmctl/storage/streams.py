"""Streams to and from a remote store: hashed on the way in, by ranges on the way out."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol

from llmctl.errors import TransferError
from llmctl.storage.faults import STAGE
from llmctl.storage.hashing import CHUNK, Digest

READ_BYTES = 4 << 20
"""One ranged read: large enough for the round trip not to matter, small enough to hold many."""

RANGED = 256 << 20
"""Larger files come down in several ranges at once."""

_RANGE = 64 << 20
_STREAMS = 4


class Fingerprinted(io.RawIOBase):
    """`source` as a stream whose every byte goes into `digest` as it is read, once and in order."""

    def __init__(self, source: BinaryIO, digest: Digest) -> None:
        self._source, self._digest = source, digest
        self._again = False

    @property
    def sha256(self) -> str:
        """Of what was read."""
        return self._digest.sha256

    def rewind(self) -> None:
        """To the start; what is read again is not hashed again."""
        self._source.seek(0)
        self._again = True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        if not self._again:
            self._digest.update(data)
        return data

    def close(self) -> None:
        self._source.close()
        super().close()


def fetch_ranges(
    fetch: Callable[[int, int, Callable[[bytes], object]], None], size: int, target: int, digest: Digest
) -> None:
    """Fill the open file `target` by several `fetch(start, end, sink)` at once; `digest` follows.

    Memory does not grow with `size`: a range is written as it comes, and hashed from the file after it.
    """
    starts = range(0, size, _RANGE)

    def one(start: int) -> None:
        at = start

        def write(piece: bytes) -> None:
            nonlocal at
            left = memoryview(piece)
            while left:  # a disk that is almost full takes a part
                done = os.pwrite(target, left, at)
                at, left = at + done, left[done:]

        fetch(start, min(start + _RANGE, size), write)

    pool = ThreadPoolExecutor(_STREAMS, thread_name_prefix="llmctl-range")
    try:
        for start, done in zip(starts, [pool.submit(one, start) for start in starts], strict=True):
            done.result()
            _follow(target, start, min(start + _RANGE, size), digest)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow(target: int, start: int, end: int, digest: Digest) -> None:
    for at in range(start, end, CHUNK):
        digest.update(os.pread(target, min(CHUNK, end - at), at))


class Ranges(Protocol):
    """The part of a store that RangeReader needs."""

    def where(self, path: str) -> str: ...

    def read_range(self, path: str, start: int, end: int) -> bytes: ...


class RangeReader(io.RawIOBase):
    """A remote file as a seekable raw stream: one ranged read per call, each under the store's deadline."""

    def __init__(self, store: Ranges, path: str, size: int) -> None:
        self._store, self._path, self._size, self._at = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readall(self) -> bytes:
        # The inherited one asks for 8 KiB at a time.
        parts = []
        while part := self.read(READ_BYTES):
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._store.read_range(self._path, self._at, end)
        if not data:
            raise TransferError(
                f"{self._store.where(self._path)}: ended at byte {self._at} of {self._size}", stage=STAGE
            )
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
