"""Fingerprints of files and streams, and the check of a file against its manifest.

SHA-256 decides whether a file is right. A CRC-32 of each MiB, almost free beside it, says where it is not.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llmctl.errors import IntegrityError
from llmctl.storage.faults import STAGE, explained
from llmctl.wire.manifests import CRC_BLOCK, FileEntry

if TYPE_CHECKING:
    from llmctl.storage.files import Store

CHUNK = CRC_BLOCK

_SHOWN = 3
"""Damaged ranges that an error names; a truncated disk would fill the screen with them."""


class Digest:
    """The running fingerprint of bytes that arrive in any portions."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._crcs: list[int] = []

    def update(self, data: bytes | memoryview) -> None:
        """Take in the next bytes."""
        view = memoryview(data)
        self._sha256.update(view)
        while view:
            room = CRC_BLOCK - self.size % CRC_BLOCK
            part = view[:room]
            if room == CRC_BLOCK:
                self._crcs.append(0)
            self._crcs[-1] = zlib.crc32(part, self._crcs[-1])
            self.size += len(part)
            view = view[room:]

    @property
    def sha256(self) -> str:
        """Of what was taken in so far, as hex digits."""
        return self._sha256.hexdigest()

    def entry(self, path: str) -> FileEntry:
        """The manifest's line for what was taken in, listed as `path`."""
        crcs = "".join(f"{crc:08x}" for crc in self._crcs)
        return FileEntry(path=path, size=self.size, sha256=self.sha256, crc32=crcs)


def digest_stream(stream: BinaryIO) -> Digest:
    """The fingerprint of what is left in `stream`, in bounded memory."""
    digest = Digest()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest


def file_entry(local: Path, path: str) -> FileEntry:
    """The manifest's line for the local file, listed as `path`.

    Raises:
        NotFoundError, TransferError: it can't be read.
    """
    with explained("read", str(local)), local.open("rb") as stream:
        return digest_stream(stream).entry(path)


def check(where: str, entry: FileEntry, found: FileEntry) -> None:
    """Compare what was read with what the manifest says.

    Raises:
        IntegrityError: naming the file, what was expected and found, and which bytes differ.
    """
    if found.size != entry.size:
        raise IntegrityError(f"{where}: expected {entry.size} bytes, found {found.size}", stage=STAGE)
    if found.sha256 != entry.sha256:
        told = f"{where}: expected sha256 {entry.sha256}, found {found.sha256}"
        raise IntegrityError(told + _where_told(damaged_ranges(entry, found)), stage=STAGE)


def damaged_ranges(entry: FileEntry, found: FileEntry) -> list[tuple[int, int]]:
    """The [start, end) byte ranges, in whole MiB, in which two files of one size differ.

    Empty where the manifest has no CRCs, as those of an older llmctl.
    """
    ranges: list[tuple[int, int]] = []
    for at in range(0, min(len(entry.crc32), len(found.crc32)), 8):
        if entry.crc32[at : at + 8] == found.crc32[at : at + 8]:
            continue
        start = at // 8 * CRC_BLOCK
        end = min(start + CRC_BLOCK, entry.size)
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))
    return ranges


def _where_told(ranges: list[tuple[int, int]]) -> str:
    if not ranges:
        return ""
    told = ", ".join(f"{start}-{end - 1}" for start, end in ranges[:_SHOWN])
    more = f" and {len(ranges) - _SHOWN} more ranges" if len(ranges) > _SHOWN else ""
    return f"; damaged within bytes {told}{more}"


def verify(store: Store, entry: FileEntry) -> None:
    """Read `entry` from `store` and check every byte.

    Raises:
        IntegrityError: size or hash differ.
        NotFoundError, TransferError, DeadlineError: it can't be read.
    """
    with store.open_read(entry.path) as stream:
        found = digest_stream(stream).entry(entry.path)
    check(store.where(entry.path), entry, found)
