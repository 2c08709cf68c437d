"""What travels for one (base, tree): the paths to remove, and the changed files as a compressed tar."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import zstandard

from llmctl.controller.transport.spool import Spool
from llmctl.controller.transport.tarstream import tar_stream
from llmctl.controller.transport.tree import Entry, Tree

ZSTD = "zstd"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """From a base manifest to a tree.

    Attributes:
        send: entries that the base lacks or has otherwise.
        remove: NUL-ended paths of the base that must go first: gone, or to be replaced (what is unpacked
            must never be written through a hard link of another tree).
    """

    send: tuple[Entry, ...]
    remove: bytes

    @property
    def bytes(self) -> int:
        """Size of what is sent, uncompressed."""
        return sum(entry.size for entry in self.send)


def delta(base: bytes, tree: Tree) -> Delta:
    """Compare two manifests; `base` is empty for nothing at all."""
    if not base:
        return Delta(send=tree.entries, remove=b"")
    old, new = _differing(base, tree.manifest)
    added = {_path(line) for line in new - old}
    gone = {_path(line) for line in old - new}
    send = tuple(sorted(tree.entry(line) for line in new - old))
    vanished = _vanished_folders(gone - added, tree.manifest)
    remove = sorted(path for path in gone if not any(up in vanished for up in _parents(path)))
    return Delta(send=send, remove=b"".join(path + b"\0" for path in (*remove, *sorted(vanished))))


def _differing(old: bytes, new: bytes) -> tuple[set[bytes], set[bytes]]:
    """The lines of both, less those that are equal at the start and at the end: mostly nearly all."""
    start = old.rfind(b"\0", 0, _equal_start(old, new)) + 1
    old, new = old[start:], new[start:]
    end = old.find(b"\0", len(old) - _equal_end(old, new))
    if end >= 0:
        old, new = old[:end], new[: len(new) - (len(old) - end)]
    return _lines(old), _lines(new)


def _equal_start(one: bytes, other: bytes) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _equal_end(one: bytes, other: bytes) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]:
            low = middle
        else:
            high = middle - 1
    return low


def _lines(manifest: bytes) -> set[bytes]:
    return set(manifest.split(b"\0")) if manifest else set()


def _path(line: bytes) -> bytes:
    return line.split(b" ", 2)[2]


def _parents(path: bytes) -> Iterator[bytes]:
    """Folders of a path, the nearest last."""
    at = path.find(b"/")
    while at >= 0:
        yield path[:at]
        at = path.find(b"/", at + 1)


def _vanished_folders(gone: set[bytes], manifest: bytes) -> set[bytes]:
    """The topmost folders that no path of the new tree lies in."""
    if not gone:
        return set()
    kept = {folder for line in _lines(manifest) for folder in _parents(_path(line))}
    return {next((f for f in _parents(path) if f not in kept), b"") for path in gone} - {b""}


class Payloads:
    """One spool per (base, codec): compressed once, sent to every host that has that base."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spools: dict[tuple[str, str], Spool] = {}

    def get(self, tree: Tree, base: str, change: Delta, codec: str) -> Spool:
        with self._lock:
            key = (base, codec)
            if key not in self._spools:
                self._spools[key] = Spool(lambda: compressed(tree, change, codec))
            return self._spools[key]

    def close(self) -> None:
        with self._lock:
            for spool in self._spools.values():
                spool.close()
            self._spools.clear()


def compressed(tree: Tree, change: Delta, codec: str) -> Iterator[bytes]:
    """The changed files as tar, compressed with a checksum, in pieces worth sending."""
    packer = _packer(codec, change.bytes)
    for block in _blocks(tar_stream(tree.root, change.send)):
        if data := packer.compress(block):
            yield data
    yield packer.flush()


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Joined to blocks: every call of a compressor gives Python's lock away, and waits to get it back."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _BLOCK:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _packer(codec: str, size: int) -> _Packer:
    if codec == ZSTD:
        # A thread of zstd's own compresses while Python makes the tar: half of the time.
        threads = 1 if size > 8 * _BLOCK else 0
        return zstandard.ZstdCompressor(level=1, write_checksum=True, threads=threads).compressobj()
    return zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
