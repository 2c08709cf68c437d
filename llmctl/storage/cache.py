"""Local files whose hash is known to be right: checked in place, or copied from a store and checked.

What was checked once is remembered by (path, size, mtime, inode, hash), so that a restart need not read
everything again. Many processes of one host may ask for the same file at once: one works, the others wait.
Copies take up to a limit of bytes; `eviction` says what goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llmctl.errors import ConfigError, IntegrityError, NotFoundError, TransferError
from llmctl.storage.eviction import files_folder, hold, lock_file, make_room, note_file
from llmctl.storage.faults import STAGE, explained
from llmctl.storage.files import Store
from llmctl.storage.hashing import Digest, check, file_entry
from llmctl.storage.local import write_beside
from llmctl.storage.locks import locked
from llmctl.wire.manifests import FileEntry

LOCK_S = 900.0
"""How long to wait for another process of this host that fetches or checks the same file."""

_TRIES = 8


class FileCache:
    """Verified local paths for the files of stores.

    Args:
        folder: for copies and remembered checks; None: local stores only, and checks last for this process.
        limit: bytes of copies beyond which those that nobody uses go; None: see `make_room`.
    """

    def __init__(self, folder: Path | None, limit: int | None = None) -> None:
        self._folder = folder
        self._limit = limit
        self._known: dict[str, str] = {}

    def verified(self, store: Store, entry: FileEntry) -> Path:
        """A local file with exactly the bytes of `entry`.

        Raises:
            IntegrityError: the store's bytes are not those; names file, expected and found.
            NotFoundError, TransferError, DeadlineError: they can't be had.
        """
        path = self.place(store, entry)
        if self._is_known(path, entry):
            self._touch(path)
            return path
        with self._host_lock(entry.sha256):
            if store.local_root is not None:
                self._check(path, entry)
            else:
                self._copy(store, entry, path)
        return path

    def open(self, store: Store, entry: FileEntry) -> BinaryIO:
        """The verified file, open. A copy stays in the cache while the stream, or a map of it, is open.

        Raises:
            As `verified`.
        """
        for _ in range(_TRIES):
            path = self.verified(store, entry)
            try:
                with explained("open", str(path)):
                    stream = path.open("rb")
            except NotFoundError:
                continue
            if store.local_root is not None:
                return stream
            hold(stream)
            # Between our look and our lock it may have been evicted: then this lock guards a nameless file.
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
            stream.close()
        raise TransferError(f"{store.where(entry.path)}: evicted from the cache again and again", stage=STAGE)

    def place(self, store: Store, entry: FileEntry) -> Path:
        """Where the verified file is or will be: in a local store itself, else in the cache folder."""
        if store.local_root is not None:
            return store.local_root / entry.path
        if self._folder is None:
            raise ConfigError(f"{store.uri} is remote: reading it needs a cache folder")
        return files_folder(self._folder) / entry.sha256

    def _is_known(self, path: Path, entry: FileEntry) -> bool:
        """Checked before, by this process: no lock, so nobody waits behind another file's download."""
        try:
            return str(path) in self._known and self._known[str(path)] == _stamp(path, entry)
        except FileNotFoundError:
            return False

    def _copy(self, store: Store, entry: FileEntry, path: Path) -> None:
        if path.exists():
            try:
                self._check(path, entry)
                return
            except NotFoundError:
                pass  # evicted since the look
            except IntegrityError:
                path.unlink(missing_ok=True)  # rotten on this disk; the store has the good one
        if self._folder is not None:
            make_room(self._folder, entry.size, self._limit)
        fetch(store, entry, path)
        self._remember(path, entry)

    def _check(self, path: Path, entry: FileEntry) -> None:
        with explained("read", str(path)):
            stamp = _stamp(path, entry)
        if self._remembered(path) == stamp:
            self._known[str(path)] = stamp
            self._touch(path)
            return
        check(str(path), entry, file_entry(path, entry.path))
        self._remember(path, entry)

    def _touch(self, path: Path) -> None:
        """Note that it was asked for. Another process may be evicting it just now."""
        if self._folder is not None:
            with suppress(NotFoundError), explained("write", str(self._folder)):
                os.utime(note_file(self._folder, path))

    def _remembered(self, path: Path) -> str | None:
        if self._folder is None:
            return None
        try:
            return note_file(self._folder, path).read_text(encoding="utf-8")
        except OSError:
            return None  # never checked, or unreadable: then it is checked again

    def _remember(self, path: Path, entry: FileEntry) -> None:
        try:
            stamp = _stamp(path, entry)
        except FileNotFoundError:
            return  # evicted already, which `open` finds out
        self._known[str(path)] = stamp
        if self._folder is not None:
            with explained("write", str(self._folder)), write_beside(note_file(self._folder, path)) as stream:
                stream.write(stamp.encode())

    @contextmanager
    def _host_lock(self, name: str) -> Iterator[None]:
        if self._folder is None:
            yield
            return
        with locked(lock_file(self._folder, name), LOCK_S):
            yield


def fetch(store: Store, entry: FileEntry, path: Path) -> None:
    """Copy `entry` to `path`, hashed on the way; `path` appears only when every byte is right.

    Raises:
        IntegrityError: other bytes came; nothing is left at `path`.
    """
    digest = Digest()
    with store.open_read(entry.path) as source, explained("write", str(path)), write_beside(path) as target:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
        check(store.where(entry.path), entry, digest.entry(entry.path))


def _stamp(path: Path, entry: FileEntry) -> str:
    status = path.stat()
    return json.dumps([str(path), status.st_size, status.st_mtime_ns, status.st_ino, entry.sha256])
