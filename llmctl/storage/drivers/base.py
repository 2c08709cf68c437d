"""`Driver`: the few calls that a remote store is made of, and the one for any fsspec file system."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Protocol

from llmctl.storage.deadline import budget
from llmctl.storage.files import StoreFile

CHUNK = 4 << 20
"""Bytes handed to a client at once."""

Sink = Callable[[bytes], object]
"""Takes the next bytes of a file; what it raises ends the read."""

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a listing: files with full names, and where to go on (None: that was all)."""

    files: list[StoreFile]
    next: Any = None


class Driver(Protocol):
    """One kind of store. Paths are full ones, as this kind knows them; a missing one is FileNotFoundError.

    Attributes:
        renames: `replace` is one step for a reader. Else `write` is: the object appears whole at its end.
        checks: a checksum travels with each byte of `write`, and the store refuses bytes that don't fit.
            Else what was written is to be read back.
    """

    renames: bool
    checks: bool

    def info(self, path: str) -> StoreFile:
        """Size and version of a file; for a folder FileNotFoundError or IsADirectoryError."""

    def is_folder(self, path: str) -> bool:
        """Whether anything lies below `path`, or it is an empty folder."""

    def page(self, folder: str, at: Any) -> Page:
        """Files below `folder`, any depth, from `at` (None: the start); a missing folder is an empty one."""

    def read(self, path: str, sink: Sink, start: int = 0, end: int | None = None) -> None:
        """Bytes `start` to `end` (None: all that is left), in order, as the file was at one moment."""

    def write(self, path: str, opened: Callable[[], BinaryIO], size: int) -> None:
        """Create or replace a file from a stream of `size` bytes, read once and in order."""

    def replace(self, source: str, target: str) -> None:
        """Move a file; one at `target` is replaced."""

    def move_folder(self, source: str, target: str) -> None:
        """Move a folder to where nothing is."""

    def remove(self, path: str) -> None:
        """Remove a file; a missing one is no error."""

    def remove_all(self, folder: str, page: Page) -> None:
        """Remove the files of `page`, or the whole `folder` at once where the store can."""

    def make_folder(self, path: str) -> None:
        """With its parents; one that is there is no error."""

    def free(self, folder: str) -> int | None:
        """Bytes that still fit there; None: the store tells nothing."""

    def unfinished(self, folder: str) -> list[tuple[str, float]]:
        """Writes below `folder` that the store itself keeps open: (name, start as POSIX time)."""

    def abort(self, name: str) -> None:
        """End one of `unfinished`."""

    def is_passing(self, error: BaseException) -> bool:
        """Whether trying again may help."""


class FsspecDriver:
    """Any fsspec file system by its public calls only: memory, sftp, smb and whatever is installed."""

    checks = False

    def __init__(self, fs: Any, renames: bool) -> None:
        self.renames = renames
        self._fs = fs
        # Drivers without a `mv` of their own inherit one that copies, and takes `?` or `*` in a name for
        # a pattern; so do they for `rm`. Only calls for one file take names as they are.
        self._moves = _overrides(fs, "mv")

    def info(self, path: str) -> StoreFile:
        self._fs.invalidate_cache()  # some drivers answer from a listing of before
        details = self._fs.info(path)
        if details.get("type") == "directory":
            raise IsADirectoryError(path)
        return _store_file(path, details)

    def is_folder(self, path: str) -> bool:
        return bool(self._fs.isdir(path))

    def page(self, folder: str, at: Any) -> Page:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            found = {}
        return Page(files=[_store_file(name, details) for name, details in found.items()])

    def read(self, path: str, sink: Sink, start: int = 0, end: int | None = None) -> None:
        if end is None:
            sink(bytes(self._fs.cat_file(path, start=start or None)))
            return
        beat = budget().beat
        for at in range(start, end, CHUNK):
            sink(bytes(self._fs.cat_file(path, start=at, end=min(at + CHUNK, end))))
            beat()

    def write(self, path: str, opened: Callable[[], BinaryIO], size: int) -> None:
        with opened() as source:
            if size <= CHUNK:
                self._fs.pipe_file(path, source.read())
                return
            beat = budget().beat
            with self._fs.open(path, "wb") as target:
                while chunk := source.read(CHUNK):
                    beat()
                    target.write(chunk)

    def replace(self, source: str, target: str) -> None:
        # Drivers disagree on an existing target: some refuse, some do nothing and say nothing.
        if "memory" not in self._fs.protocol and self._fs.exists(target):
            self._fs.rm_file(target)
        if self._moves:
            self._fs.mv(source, target)
        else:
            self._fs.cp_file(source, target)
            self._fs.rm_file(source)

    def move_folder(self, source: str, target: str) -> None:
        if self._moves:
            self._fs.mv(source, target)
            return
        for name in sorted(self._fs.find(source)):
            place = target + name[len(source) :]
            self._fs.makedirs(posixpath.dirname(place), exist_ok=True)
            self.replace(name, place)
        if self._fs.exists(source):
            self.remove_all(source, Page(files=[]))

    def remove(self, path: str) -> None:
        if self._fs.exists(path):
            self._fs.rm_file(path)
            self._fs.invalidate_cache()

    def remove_all(self, folder: str, page: Page) -> None:
        if not _MAGIC.search(folder):
            self._fs.rm(folder, recursive=True)
            return
        for name in self._fs.find(folder):
            self._fs.rm_file(name)

    def make_folder(self, path: str) -> None:
        self._fs.makedirs(path, exist_ok=True)

    def free(self, folder: str) -> int | None:
        return None

    def unfinished(self, folder: str) -> list[tuple[str, float]]:
        return []

    def abort(self, name: str) -> None:
        raise FileNotFoundError(name)

    def is_passing(self, error: BaseException) -> bool:
        return isinstance(error, (ConnectionError, TimeoutError))


def _overrides(fs: Any, method: str) -> bool:
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    inherited = (getattr(AbstractFileSystem, method), getattr(AsyncFileSystem, method))
    return getattr(type(fs), method) not in inherited


def _store_file(path: str, details: dict[str, Any]) -> StoreFile:
    # Every driver has its own name for what changes with the file; a created time counts as one.
    names = ("ETag", "etag", "mtime", "LastModified", "modificationTime", "modified", "created")
    version = next((str(details[name]) for name in names if details.get(name)), "")
    size = int(details.get("size") or 0)
    return StoreFile(path=path, size=size, version=version, modified=_modified(details))


def _modified(details: dict[str, Any]) -> float:
    found = next((details[name] for name in ("mtime", "modified", "created") if details.get(name)), 0.0)
    return found.timestamp() if isinstance(found, datetime) else float(found)
