"""What the last scan knew of each folder: stat data, hashes, ignore decisions, and its part of the manifest.

A file of frames, one folder each, a later one replaces an earlier one: a scan that finds one changed file
appends one frame. Losing it costs time, never truth. Frames are marshal (a fifth of JSON's time for 20,000
files; plain values, nothing is executed), each behind its length and checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

IGNORED, SUBFOLDER = 0, 1
LARGE = 100 << 20

Record: TypeAlias = tuple[int, int, int, int, int, str, str, str]
"""ctime, mtime (both in ns), size, inode, mode, kind, sha256, link target. Kind is that of a tree's entry, or
"" for what is never pushed. A ctime of -1 equals none: the file is read again by the next scan."""

Records: TypeAlias = dict[str, Any]
"""Name -> Record or IGNORED; a folder's name, with a slash, -> SUBFOLDER or IGNORED."""

_HEADER = f"llmctl scan 2 {sys.implementation.cache_tag}\n".encode()
_FRAME = struct.Struct("<II")


class Folder(NamedTuple):
    """One folder without what lies in its folders.

    Attributes:
        rules: key of the ignore rules that hold inside.
        pieces: in order of path, manifest lines of files (bytes, NUL between them) and prefixes of folders.
        bytes: of its files.
        large: paths and sizes of files over 100 MB.
    """

    rules: str
    records: Records
    pieces: tuple[bytes | str, ...] = ()
    files: int = 0
    bytes: int = 0
    special: int = 0
    ignored: int = 0
    large: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, prefix: str, rules: str, records: Records) -> Self:
        """Count and order the records of the folder `prefix` (relative with a slash at its end, or "")."""
        names = sorted(records)
        kept = [(n, records[n]) for n in names if records[n] != IGNORED]
        files = [(n, r) for n, r in kept if r != SUBFOLDER and r[5]]
        folders = sum(r == SUBFOLDER for _, r in kept)
        return cls(
            rules=rules,
            records=records,
            pieces=tuple(_pieces(prefix, kept)),
            files=len(files),
            bytes=sum([r[2] for _, r in files if r[5] != "l"]),
            special=len(kept) - len(files) - folders,
            ignored=len(names) - len(kept),
            large=tuple((prefix + n, r[2]) for n, r in files if r[2] > LARGE),
        )


def _pieces(prefix: str, kept: list[tuple[str, Any]]) -> Iterator[bytes | str]:
    run: list[str] = []
    for name, record in kept:
        if record == SUBFOLDER:
            if run:
                yield os.fsencode("\0".join(run))
                run = []
            yield prefix + name
        elif record[5]:
            run.append(f"{record[5]} {record[6]} {prefix}{name}")
    if run:
        yield os.fsencode("\0".join(run))


class TreeCache:
    """The cache of one scanned root; a wrong or torn frame is the same as none."""

    def __init__(self, file: Path, folders: dict[str, Folder], frames: int) -> None:
        self._file = file
        self._before = folders
        self._frames = frames

    @classmethod
    def load(cls, cache_dir: Path, root: Path) -> Self:
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
        file = cache_dir / "scans" / f"{name}.frames"
        folders: dict[str, Folder] = {}
        frames = 0
        with contextlib.suppress(OSError):  # none yet, or a state folder that is none: read all files
            for prefix, folder in _frames(file.read_bytes()):
                folders[prefix] = folder
                frames += 1
        return cls(file, folders, frames)

    def folder(self, prefix: str, rules: str) -> Folder | None:
        """What was known of a folder under the same ignore rules; under others nothing is."""
        known = self._before.get(prefix)
        return known if known and known.rules == rules else None

    def save(self, found: dict[str, Folder]) -> None:
        """Append the folders that changed, or write all anew when old frames outweigh."""
        changed = [prefix for prefix in found if found[prefix] is not self._before.get(prefix)]
        anew = self._frames > 2 * len(found) + 16 or not self._frames
        if not anew and not changed:
            return
        with contextlib.suppress(OSError):  # a cache that can't be written only costs time
            if anew:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._replace(_encoded(found, found))
            else:
                self._append(_encoded(found, changed))

    def _append(self, frames: bytes) -> None:
        with self._file.open("ab", buffering=0) as file:
            file.write(frames)

    def _replace(self, frames: bytes) -> None:
        handle, beside = tempfile.mkstemp(dir=self._file.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(_HEADER + frames)
        Path(beside).replace(self._file)


def _encoded(found: dict[str, Folder], prefixes: Sequence[str] | dict[str, Folder]) -> bytes:
    """Frames; marshal knows only plain tuples, so a Folder becomes one."""
    out = []
    for prefix in prefixes:
        body = marshal.dumps((prefix, *found[prefix]))
        out += [_FRAME.pack(len(body), zlib.crc32(body)), body]
    return b"".join(out)


def _frames(data: bytes) -> Iterator[tuple[str, Folder]]:
    """All frames up to the first that is torn."""
    if not data.startswith(_HEADER):
        return
    at = len(_HEADER)
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        body = data[at : at + length]
        if len(body) != length or zlib.crc32(body) != checksum:
            return
        prefix, *rest = marshal.loads(body)  # noqa: S302 - our own file, behind a version and a checksum
        yield prefix, Folder(*rest)
        at += length
