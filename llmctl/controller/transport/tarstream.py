"""Files of a tree as a tar stream, made header by header: a tenth of tarfile's time for many small files.

GNU format, since GNU tar, busybox and Python all read its long names and raw bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmctl.controller.transport.tree import Entry
from llmctl.errors import IntegrityError

_BLOCK = 512
_RECORD = 20 * _BLOCK
"""GNU tar reads whole records: a shorter end would break the pipe of what unpacks before it."""

_CHUNK = 1 << 20
_MAGIC = b"ustar  \0"
_LONG_NAME, _LONG_LINK, _FILE, _LINK = b"L", b"K", b"0", b"2"


def tar_stream(root: Path, entries: Iterable[Entry]) -> Iterator[bytes]:
    """The archive in pieces.

    Raises:
        IntegrityError: a file is no longer what its entry says.
    """
    total = 0
    for entry in entries:
        for piece in _member(root, entry):
            total += len(piece)
            yield piece
    end = 2 * _BLOCK
    yield bytes(end + -(total + end) % _RECORD)


def _member(root: Path, entry: Entry) -> Iterator[bytes]:
    name = os.fsencode(entry.path)
    if entry.kind == "l":
        yield from _headers(name, mode=0o777, size=0, mtime=0, link=os.fsencode(entry.target))
        return
    handle = _open(root, entry)
    try:
        info = os.fstat(handle)
        if info.st_size != entry.size or not stat.S_ISREG(info.st_mode):
            raise _changed(entry)
        mode = 0o700 if entry.kind == "x" else 0o600
        yield from _headers(name, mode=mode, size=entry.size, mtime=int(info.st_mtime))
        digest, left = hashlib.sha256(), entry.size
        while left:
            data = os.read(handle, min(left, _CHUNK))
            if not data:
                raise _changed(entry)
            digest.update(data)
            left -= len(data)
            yield data
    finally:
        os.close(handle)
    if digest.hexdigest() != entry.sha256:
        raise _changed(entry)
    if entry.size % _BLOCK:
        yield bytes(-entry.size % _BLOCK)


def _open(root: Path, entry: Entry) -> int:
    try:
        return os.open(f"{root}/{entry.path}", os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise _changed(entry) from None
        raise


def _changed(entry: Entry) -> IntegrityError:
    message = f"{entry.path} changed while it was being pushed"
    return IntegrityError(message, hint="try again when nothing writes to it", stage="push")


def _headers(name: bytes, *, mode: int, size: int, mtime: int, link: bytes = b"") -> Iterator[bytes]:
    if len(name) > 100:
        yield from _long(_LONG_NAME, name)
    if len(link) > 100:
        yield from _long(_LONG_LINK, link)
    yield _header(name[:100], _LINK if link else _FILE, mode=mode, size=size, mtime=mtime, link=link[:100])


def _long(kind: bytes, text: bytes) -> Iterator[bytes]:
    """A member whose content is the next member's long name."""
    text += b"\0"
    yield _header(b"././@LongLink", kind, mode=0, size=len(text), mtime=0)
    yield text + bytes(-len(text) % _BLOCK)


def _header(name: bytes, kind: bytes, *, mode: int, size: int, mtime: int, link: bytes = b"") -> bytes:
    """One 512-byte header; owner and group are left at 0, for the unpacker's own."""
    times = b"%011o\0" % max(0, min(mtime, 0o77777777777))
    fields = b"%07o\0%07o\0%07o\0%b%b" % (mode, 0, 0, _octal(size), times)
    # Zeros add nothing: the sum over what is there is the sum over the block.
    checksum = sum(name) + sum(fields) + sum(kind) + sum(link) + sum(_MAGIC) + 8 * 32
    front = b"%b%b%06o\0 %b%b%b" % (
        name.ljust(100, b"\0"),
        fields,
        checksum,
        kind,
        link.ljust(100, b"\0"),
        _MAGIC,
    )
    return front.ljust(_BLOCK, b"\0")


def _octal(size: int) -> bytes:
    """The size field: octal, or base 256 from 8 GiB on."""
    if size < 0o100000000000:
        return b"%011o\0" % size
    return b"\x80" + size.to_bytes(11, "big")
