"""`open_store`: one small protocol over a folder on disk, in memory or behind any fsspec URL.

Every store shows a file whole or not at all: `put_file` and `write_bytes` write a temporary name in the same
folder and rename it where the store renames atomically; where it does not (object stores), a single object
appears whole by itself, and several files become one thing by writing their marker last.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from llmctl.storage.uris import is_local, local_path, refuse_credentials
from llmctl.wire.manifests import FileEntry

DEADLINE_S = 60.0
"""How long one call to a remote store may take, beside the time that its bytes need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFile:
    """One file of a store.

    Attributes:
        path: relative to the store's root, POSIX separators.
        size: bytes.
        version: changes when the file does (mtime, etag), empty where the store tells nothing.
        modified: POSIX time of the last change by the store's clock, 0 where it tells nothing.
    """

    path: str
    size: int
    version: str = ""
    modified: float = 0.0


class Store(Protocol):
    """Files below one URI; paths are relative, POSIX, and never leave it.

    Every method raises NotFoundError for a file that is not there, TransferError with the store's own reason
    for a refusal, DeadlineError for a remote call that took too long.

    Attributes:
        uri: where it is, safe to show.
        atomic_rename: `rename` is one step for every reader; else writing a marker last is the caller's duty.
        local_root: its folder where it is a local disk, else None.
    """

    uri: str
    atomic_rename: bool
    local_root: Path | None

    def where(self, path: str) -> str:
        """`path` as a full URI, for messages."""

    def exists(self, path: str) -> bool:
        """Whether the file `path` is there, whole."""

    def info(self, path: str) -> StoreFile:
        """Size and version of one file."""

    def size(self, path: str) -> int:
        """Bytes of one file."""

    def list(self, prefix: str = "") -> list[StoreFile]:
        """All files in the folder `prefix`, any depth, sorted by path; unfinished ones are hidden."""

    def read_bytes(self, path: str) -> bytes:
        """The whole file."""

    def open_read(self, path: str) -> BinaryIO:
        """A seekable stream of the file; the caller closes it."""

    def write_bytes(self, path: str, data: bytes) -> None:
        """Create or replace a file, in one step for every reader."""

    def put_file(self, local: Path, path: str) -> FileEntry:
        """Copy a local file in; create or replace, in one step for every reader.

        The store's bytes were checked against those that were read. Returns their fingerprint.
        """

    def get_file(self, path: str, local: Path, *, expected: FileEntry | None = None) -> FileEntry:
        """Copy a file out to `local`, written beside and renamed. Returns the fingerprint of what came.

        Raises:
            IntegrityError: it is not what is `expected`; `local` is as it was.
        """

    def rename(self, old: str, new: str) -> None:
        """Move a file or folder; a file at `new` is replaced."""

    def delete(self, prefix: str) -> None:
        """Remove a file or a folder with all below; nothing there is no error."""

    def free_room(self) -> int | None:
        """Bytes that still fit, replicas and quotas not counted in; None: the store tells nothing."""

    def cleanup(self, older_than_s: float) -> tuple[str, ...]:
        """Remove what writers that died left unfinished, untouched for so long; the names that went."""


def open_store(uri: str, *, deadline_s: float = DEADLINE_S) -> Store:
    """The store at a plain path, file://, memory:// or any other fsspec URL; nothing is created yet.

    Raises:
        ConfigError: credentials in the URL, an unknown scheme, or a driver that is not installed.
    """
    refuse_credentials(uri)
    if is_local(uri):
        from llmctl.storage.local import LocalStore

        return LocalStore(local_path(uri))
    from llmctl.storage.remote import open_remote

    return open_remote(uri, deadline_s=deadline_s)


def temporary_name(name: str) -> str:
    """A name beside `name` that `list` hides."""
    return f".{name}.{secrets.token_hex(4)}.part"


def is_temporary(path: str) -> bool:
    """Whether `path` is, or lies in, something unfinished."""
    return any(part.startswith(".") and part.endswith(".part") for part in path.split("/"))
