"""Reading files from their end: a log of many gigabytes costs as little as a small one."""

from __future__ import annotations

import os
from collections.abc import Iterator

_BLOCK = 64 * 1024


def lines_backwards(path: str, *, limit: int = 4 * 1024 * 1024) -> Iterator[bytes]:
    """Whole lines of `path` without their newline, the last one first, within the last `limit` bytes.

    A last line without a newline counts as a line. A missing file has no lines.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the `with` below, a missing one never opens
    except OSError:
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        floor = max(0, end - limit)
        rest = b""
        while end > floor:
            start = max(floor, end - _BLOCK)
            file.seek(start)
            block = file.read(end - start) + rest
            rest, *lines = block.split(b"\n")
            end = start
            for line in reversed(lines):
                if line:
                    yield line
        if rest and floor == 0:
            yield rest


def last_lines(path: str, count: int, *, limit: int = 64 * 1024, width: int = 2000) -> tuple[str, ...]:
    """The last `count` non-empty lines as text, oldest first, each cut to `width` characters."""
    found: list[str] = []
    for line in lines_backwards(path, limit=limit):
        if len(found) == count:
            break
        found.append(line.decode(errors="replace").rstrip("\r")[:width])
    return tuple(reversed(found))


def offset_of_last_lines(path: str, count: int) -> int:
    """Byte offset at which the last `count` lines of `path` begin; its size for 0 lines."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError:
        return 0
    with file:
        size = end = file.seek(0, os.SEEK_END)
        if count <= 0:
            return size
        # The newline that ends the last line starts no further one.
        wanted = count + (1 if _ends_with_newline(file, size) else 0)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            block = file.read(end - start)
            newlines = block.count(b"\n")
            if newlines >= wanted:
                return start + _nth_from_end(block, wanted) + 1
            wanted -= newlines
            end = start
    return 0


def _ends_with_newline(file: object, size: int) -> bool:
    return size > 0 and os.pread(file.fileno(), 1, size - 1) == b"\n"  # type: ignore[attr-defined]


def _nth_from_end(block: bytes, count: int) -> int:
    at = len(block)
    for _ in range(count):
        at = block.rfind(b"\n", 0, at)
    return at
