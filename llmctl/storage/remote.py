"""A store behind any fsspec URL, `memory://` included: every driver call under a deadline.

Only this module imports fsspec, and only when such a URL is opened.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from llmctl.errors import ConfigError, NotFoundError, TransferError
from llmctl.storage.deadline import call
from llmctl.storage.faults import STAGE, explained, reason
from llmctl.storage.files import StoreFile, is_temporary, temporary_name
from llmctl.storage.local import write_beside
from llmctl.storage.uris import checked, join, masked

T = TypeVar("T")

RENAMES = frozenset({"memory", "hdfs", "webhdfs", "sftp", "ssh", "smb"})
"""Drivers whose `mv` is one step for a reader. Elsewhere one object appears whole by itself."""

READ_BYTES = 4 << 20
"""One ranged read: large enough for the round trip not to matter, small enough to hold many."""

SLOWEST = 1 << 20
"""Bytes per second below which a transfer counts as stalled; added to the deadline by size."""

_MAGIC = re.compile(r"[*?\[]")
_EXTRAS = {"hdfs": "llmctl[hdfs]", "s3": "llmctl[s3]", "s3a": "llmctl[s3]"}


def open_remote(uri: str, *, deadline_s: float) -> FsspecStore:
    """The store at a non-local fsspec URL.

    Raises:
        ConfigError: an unknown scheme, or its driver is not installed.
    """
    from fsspec.core import url_to_fs

    scheme = uri.split("://", 1)[0].split("::", 1)[0]
    try:
        fs, root = url_to_fs(uri)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install '{extra}'" if extra else None
        raise ConfigError(f"{masked(uri)}: the driver is not installed: {error}", hint=hint) from None
    except ValueError as error:
        raise ConfigError(
            f"{masked(uri)}: {reason(error)}", hint="a path or a URL that fsspec knows"
        ) from None
    return FsspecStore(fs, str(root), uri, scheme in RENAMES, deadline_s)


class FsspecStore:
    """`Store` over one fsspec file system."""

    local_root: Path | None = None

    def __init__(self, fs: Any, root: str, uri: str, atomic_rename: bool, deadline_s: float) -> None:
        self.uri = masked(uri)
        self.atomic_rename = atomic_rename
        self._fs = fs
        # Drivers without a `mv` of their own inherit one that copies, and takes `?` or `*` in a name for
        # a pattern; so do they for `rm`. Only calls for one file take names as they are.
        self._moves = _overrides(fs, "mv")
        self._root = root.rstrip("/")
        self._deadline_s = deadline_s

    def where(self, path: str) -> str:
        return join(self.uri, path)

    def exists(self, path: str) -> bool:
        try:
            self.info(path)
        except NotFoundError:
            return False
        return True

    def info(self, path: str) -> StoreFile:
        full = self._full(path)
        details = self._call("look up", path, lambda: self._fs.info(full))
        if details.get("type") == "directory":
            raise NotFoundError(f"{self.where(path)}: is a folder, not a file", stage=STAGE)
        return _store_file(path, details)

    def size(self, path: str) -> int:
        return self.info(path).size

    def list(self, prefix: str = "") -> list[StoreFile]:
        top = self._full(prefix) if prefix else self._root
        found = self._call("list", prefix, lambda: self._find(top))
        files = [_store_file(self._relative(name), details) for name, details in found.items()]
        return sorted((file for file in files if not is_temporary(file.path)), key=lambda file: file.path)

    def read_bytes(self, path: str) -> bytes:
        # One call, so that a file which is being replaced is read as the old one or as the new one.
        full, size = self._full(path), self.size(path)
        data = self._call("read", path, lambda: self._fs.cat_file(full), self._deadline_s + size / SLOWEST)
        if len(data) != size and len(data) != self.size(path):
            raise TransferError(f"{self.where(path)}: ended at byte {len(data)} of {size}", stage=STAGE)
        return bytes(data)

    def open_read(self, path: str) -> BinaryIO:
        size = self.size(path)
        return cast(BinaryIO, io.BufferedReader(_RangeReader(self, path, size), READ_BYTES))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file, in one call."""
        full = self._full(path)
        return bytes(self._call("read", path, lambda: self._fs.cat_file(full, start=start, end=end)))

    def write_bytes(self, path: str, data: bytes) -> None:
        self._put(path, len(data), lambda name: self._fs.pipe_file(name, data))

    def put_file(self, local: Path, path: str) -> None:
        with explained("read", str(local)):
            size = local.stat().st_size
        self._put(path, size, lambda name: self._fs.put_file(str(local), name))

    def get_file(self, path: str, local: Path) -> None:
        with self.open_read(path) as source, explained("write", str(local)), write_beside(local) as target:
            while chunk := source.read(READ_BYTES):
                target.write(chunk)

    def rename(self, old: str, new: str) -> None:
        source, target = self._full(old), self._full(new)
        self._make_parent(new)

        def move() -> None:
            if self._fs.isfile(source):
                self._replace(source, target)
            elif self._fs.isdir(source):
                self._move_folder(source, target)
            else:
                raise FileNotFoundError(source)

        self._call("rename", old, move)

    def delete(self, prefix: str) -> None:
        full = self._full(prefix)

        def remove() -> None:
            if self._fs.isfile(full):
                self._fs.rm_file(full)
            elif self._fs.exists(full):
                self._remove_folder(full)
            # Some drivers answer from a listing of before.
            self._fs.invalidate_cache()

        self._call("delete", prefix, remove)

    def _put(self, path: str, size: int, write: Callable[[str], object]) -> None:
        """Write under a temporary name and rename, or straight where an object appears whole by itself."""
        final = self._full(path)
        self._make_parent(path)
        budget = self._deadline_s + size / SLOWEST
        if not self.atomic_rename:
            self._call("write", path, lambda: write(final), budget)
        else:
            beside = posixpath.join(posixpath.dirname(final), temporary_name(posixpath.basename(final)))
            try:
                self._call("write", path, lambda: write(beside), budget)
                self._call("write", path, lambda: self._replace(beside, final))
            except BaseException:
                self._discard(path, beside)
                raise
        self._check_size(path, size)

    def _replace(self, source: str, target: str) -> None:
        # Drivers disagree on an existing target: hdfs refuses, webhdfs does nothing and says nothing.
        if "memory" not in self._fs.protocol and self._fs.exists(target):
            self._fs.rm_file(target)
        if self._moves:
            self._fs.mv(source, target)
        else:
            self._fs.cp_file(source, target)
            self._fs.rm_file(source)

    def _move_folder(self, source: str, target: str) -> None:
        if self._moves:
            self._fs.mv(source, target)
            return
        for name in sorted(self._fs.find(source)):
            place = target + name[len(source) :]
            self._fs.makedirs(posixpath.dirname(place), exist_ok=True)
            self._replace(name, place)
        if self._fs.exists(source):
            self._remove_folder(source)

    def _remove_folder(self, folder: str) -> None:
        if not _MAGIC.search(folder):
            self._fs.rm(folder, recursive=True)
            return
        for name in self._fs.find(folder):
            self._fs.rm_file(name)

    def _check_size(self, path: str, size: int) -> None:
        """A driver that lost bytes without a word is caught here, not by a reader much later."""
        self._fs.invalidate_cache()
        found = self.size(path)
        if found != size:
            raise TransferError(f"{self.where(path)}: wrote {size} bytes, the store has {found}", stage=STAGE)

    def _discard(self, path: str, beside: str) -> None:
        def remove() -> None:
            if self._fs.exists(beside):
                self._fs.rm_file(beside)

        try:
            self._call("clean up", path, remove, min(self._deadline_s, 10.0))
        except (TransferError, NotFoundError, TimeoutError):
            return  # the first failure is the one to report; `list` hides what is left

    def _make_parent(self, path: str) -> None:
        parent = posixpath.dirname(self._full(path))
        if self.atomic_rename and parent:
            self._call("make a folder", path, lambda: self._fs.makedirs(parent, exist_ok=True))

    def _find(self, top: str) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = self._fs.find(top, detail=True)
        except FileNotFoundError:
            return {}
        return found

    def _call(self, action: str, path: str, function: Callable[[], T], deadline_s: float | None = None) -> T:
        return call(
            function, action=action, where=self.where(path), deadline_s=deadline_s or self._deadline_s
        )

    def _full(self, path: str) -> str:
        return self._root + "/" + checked(path)

    def _relative(self, name: str) -> str:
        return name.removeprefix(self._root).lstrip("/")


class _RangeReader(io.RawIOBase):
    """A remote file as a seekable raw stream: one ranged read per call, each under the store's deadline."""

    def __init__(self, store: FsspecStore, path: str, size: int) -> None:
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


def _overrides(fs: Any, method: str) -> bool:
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    inherited = (getattr(AbstractFileSystem, method), getattr(AsyncFileSystem, method))
    return getattr(type(fs), method) not in inherited


def _store_file(path: str, details: dict[str, Any]) -> StoreFile:
    # Every driver has its own name for what changes with the file; a created time counts as one.
    names = ("ETag", "etag", "mtime", "LastModified", "modificationTime", "modified", "created")
    version = next((str(details[name]) for name in names if details.get(name)), "")
    return StoreFile(path=path, size=int(details.get("size") or 0), version=version)
