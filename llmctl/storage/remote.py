"""A store behind a URL: each request under a deadline, repeated where that helps, its outcome checked.

Only this module knows about temporary names, retries and deadlines; only `storage/drivers/` about clients.
"""

from __future__ import annotations

import io
import posixpath
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from llmctl.errors import DeadlineError, NotFoundError, TransferError
from llmctl.storage.deadline import TRIES, TRIES_UNKNOWN, persist
from llmctl.storage.drivers.base import Driver, Page, Sink
from llmctl.storage.drivers.connect import connect
from llmctl.storage.faults import STAGE, explained
from llmctl.storage.files import StoreFile, is_temporary, temporary_name
from llmctl.storage.hashing import Digest, check
from llmctl.storage.local import write_beside
from llmctl.storage.streams import RANGED, READ_BYTES, Fingerprinted, RangeReader, fetch_ranges
from llmctl.storage.uris import checked, join, masked
from llmctl.wire.manifests import FileEntry

T = TypeVar("T")

SLOWEST = 1 << 20
"""Bytes per second below which a transfer counts as stalled; added to the deadline by size."""

_DISCARD_S = 10.0


def open_remote(uri: str, *, deadline_s: float) -> RemoteStore:
    """The store at a non-local URL.

    Raises:
        ConfigError: an unknown scheme, or its driver is not installed.
    """
    driver, root = connect(uri)
    return RemoteStore(driver, root, uri, deadline_s)


class RemoteStore:
    """`Store` over one driver."""

    local_root: Path | None = None

    def __init__(self, driver: Driver, root: str, uri: str, deadline_s: float) -> None:
        self.uri = masked(uri)
        self.atomic_rename = driver.renames
        self._driver = driver
        self._root = root.rstrip("/")
        self._deadline_s = deadline_s
        self._answered = False

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
        try:
            found = self._call("look up", path, lambda: self._driver.info(full))
        except TransferError as error:
            if isinstance(error.__cause__, IsADirectoryError):
                raise NotFoundError(f"{self.where(path)}: is a folder, not a file", stage=STAGE) from None
            raise
        return replace(found, path=path)

    def size(self, path: str) -> int:
        return self.info(path).size

    def list(self, prefix: str = "") -> list[StoreFile]:
        files = (file for file in self._walk(prefix) if not is_temporary(file.path))
        return sorted(files, key=lambda file: file.path)

    def read_bytes(self, path: str) -> bytes:
        # One request, so that a file which is being replaced is read as the old one or as the new one.
        size = self.size(path)
        data = self._read(path, size, 0, None)
        if len(data) != size and len(data) != self.size(path):
            raise TransferError(f"{self.where(path)}: ended at byte {len(data)} of {size}", stage=STAGE)
        return data

    def open_read(self, path: str) -> BinaryIO:
        size = self.size(path)
        return cast(BinaryIO, io.BufferedReader(RangeReader(self, path, size), READ_BYTES))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file, in one request."""
        return self._read(path, end - start, start, end)

    def write_bytes(self, path: str, data: bytes) -> None:
        self._put(path, len(data), lambda: io.BytesIO(data))

    def put_file(self, local: Path, path: str) -> FileEntry:
        with explained("read", str(local)):
            size = local.stat().st_size
        return self._put(path, size, lambda: local.open("rb"))

    def get_file(self, path: str, local: Path, *, expected: FileEntry | None = None) -> FileEntry:
        size, digest = self.size(path), Digest()
        with explained("write", str(local)), write_beside(local) as target:

            def take(piece: bytes) -> None:
                with explained("write", str(local)):  # a full disk here is no fault of the store
                    target.write(piece)
                digest.update(piece)

            if size > RANGED:
                fetch_ranges(partial(self._fetch, path), size, target.fileno(), digest)
            else:
                self._fetch(path, 0, size, take)
            found = digest.entry(path)
            if found.size != size:
                raise TransferError(f"{self.where(path)}: ended at byte {found.size} of {size}", stage=STAGE)
            if expected is not None:
                check(self.where(path), expected, found)
        return found

    def rename(self, old: str, new: str) -> None:
        source, target = self._full(old), self._full(new)
        self._make_parent(new)
        if self.exists(old):
            self._replace("rename", old, source, target)
        elif self._call("rename", old, lambda: self._driver.is_folder(source)):
            self._call("rename", old, lambda: self._driver.move_folder(source, target), tries=1)
        else:
            raise NotFoundError(f"{self.where(old)}: no such file or folder", stage=STAGE)

    def delete(self, prefix: str) -> None:
        full = self._full(prefix)
        if self.exists(prefix):
            self._call("delete", prefix, lambda: self._driver.remove(full))
        if self._call("delete", prefix, lambda: self._driver.is_folder(full)):
            if self._driver.renames:
                self._call("delete", prefix, lambda: self._driver.remove_all(full, Page(files=[])))
            else:
                self._delete_pages(prefix, full)

    def free_room(self) -> int | None:
        return self._call("look for room", "", lambda: self._driver.free(self._root))

    def cleanup(self, older_than_s: float) -> tuple[str, ...]:
        before = time.time() - older_than_s
        removed = []
        for name, began in self._call("look for leftovers", "", lambda: self._driver.unfinished(self._root)):
            if began <= before:
                self._call("clean up", "", partial(self._driver.abort, name))
                removed.append(self._relative(name.split("\0")[0]))
        for file in sorted(self._walk(""), key=lambda file: file.path):
            if is_temporary(file.path) and file.modified <= before:
                self._call("clean up", file.path, partial(self._driver.remove, self._full(file.path)))
                removed.append(file.path)
        return tuple(sorted(removed))

    def _read(self, path: str, size: int, start: int, end: int | None) -> bytes:
        full = self._full(path)

        def read() -> bytes:
            parts: list[bytes] = []
            self._driver.read(full, parts.append, start, end)
            return b"".join(parts)

        return self._call("read", path, read, size)

    def _fetch(self, path: str, start: int, end: int, sink: Sink) -> None:
        """Bytes `start` to `end` into `sink`; a try after a failure goes on where the one before ended."""
        full, at = self._full(path), start

        def take(piece: bytes) -> None:
            nonlocal at
            sink(piece)
            at += len(piece)

        if end > start:
            self._call("read", path, lambda: self._driver.read(full, take, at, end), end - start)
        if at != end:
            raise TransferError(f"{self.where(path)}: ended at byte {at} of {end}", stage=STAGE)

    def _put(self, path: str, size: int, opened: Callable[[], BinaryIO]) -> FileEntry:
        """Write under a temporary name and rename, or straight where an object appears whole by itself."""
        final = self._full(path)
        self._make_parent(path)
        if not self._driver.renames:
            # What the check of it refuses stays: it may as well be whole, and another writer's.
            sent = self._send(path, final, size, opened)
        else:
            beside = posixpath.join(posixpath.dirname(final), temporary_name(posixpath.basename(final)))
            try:
                sent = self._send(path, beside, size, opened)
                self._replace("write", path, beside, final)
            except BaseException:
                self._discard(path, beside)
                raise
            self._check_size(path, final, size)
        return sent

    def _send(self, path: str, full: str, size: int, opened: Callable[[], BinaryIO]) -> FileEntry:
        """Write `full` and make sure that the store has what was read from the stream."""

        def write() -> Digest:
            digest = Digest()
            self._driver.write(full, lambda: cast(BinaryIO, Fingerprinted(opened(), digest)), size)
            return digest

        sent = self._call("write", path, write, size).entry(path)
        if sent.size != size:
            raise TransferError(f"{self.where(path)}: the file changed while it was sent", stage=STAGE)
        self._check_size(path, full, size)
        if not self._driver.checks:
            check(self.where(path), sent, self._read_back(path, full, size))
        return sent

    def _read_back(self, path: str, full: str, size: int) -> FileEntry:
        def read() -> FileEntry:
            digest = Digest()
            if size:
                self._driver.read(full, digest.update, 0, size)
            return digest.entry(path)

        return self._call("read back", path, read, size)

    def _replace(self, action: str, path: str, source: str, target: str) -> None:
        asked = False

        def move() -> None:
            nonlocal asked
            try:
                self._driver.replace(source, target)
            except FileNotFoundError:
                # The try before may have been carried out though its answer was lost.
                if not asked:
                    raise
                self._driver.info(target)
            finally:
                asked = True

        self._call(action, path, move)

    def _check_size(self, path: str, full: str, size: int) -> None:
        """A driver that lost bytes without a word is caught here, not by a reader much later."""
        found = self._call("look up", path, lambda: self._driver.info(full)).size
        if found != size:
            raise TransferError(f"{self.where(path)}: wrote {size} bytes, the store has {found}", stage=STAGE)

    def _discard(self, path: str, beside: str) -> None:
        deadline_s = min(self._deadline_s, _DISCARD_S)
        try:
            self._call("clean up", path, lambda: self._driver.remove(beside), tries=1, deadline_s=deadline_s)
        except (TransferError, NotFoundError, DeadlineError):
            return  # the first failure is the one to report; `list` hides what is left, `cleanup` removes it

    def _delete_pages(self, prefix: str, full: str) -> None:
        at = None
        while True:
            page = self._page(prefix, full, at)
            if page.files:
                self._call("delete", prefix, partial(self._driver.remove_all, full, page))
            at = page.next
            if at is None:
                return

    def _make_parent(self, path: str) -> None:
        parent = posixpath.dirname(self._full(path))
        if self._driver.renames and parent:
            self._call("make a folder", path, lambda: self._driver.make_folder(parent))

    def _walk(self, prefix: str) -> Iterator[StoreFile]:
        """All files below `prefix`, by many requests with a deadline each: a large tree may take long."""
        top, at = self._full(prefix) if prefix else self._root, None
        while True:
            page = self._page(prefix, top, at)
            for file in page.files:
                yield replace(file, path=self._relative(file.path))
            at = page.next
            if at is None:
                return

    def _page(self, prefix: str, full: str, at: Any) -> Page:
        return self._call("list", prefix, lambda: self._driver.page(full, at))

    def _call(
        self,
        action: str,
        path: str,
        function: Callable[[], T],
        size: int = 0,
        *,
        tries: int | None = None,
        deadline_s: float | None = None,
    ) -> T:
        """`function` under the deadline of a request that moves `size` bytes."""
        found = persist(
            function,
            action=action,
            where=self.where(path),
            deadline_s=(deadline_s or self._deadline_s) + size / SLOWEST,
            stall_s=deadline_s or self._deadline_s,
            passing=self._driver.is_passing,
            tries=tries or (TRIES if self._answered else TRIES_UNKNOWN),
        )
        self._answered = True
        return found

    def _full(self, path: str) -> str:
        return self._root + "/" + checked(path)

    def _relative(self, name: str) -> str:
        return name.removeprefix(self._root).lstrip("/")
