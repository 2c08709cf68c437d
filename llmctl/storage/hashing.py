"""SHA-256 of files and streams, and the check of a file against its manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llmctl.errors import IntegrityError
from llmctl.storage.faults import STAGE, explained
from llmctl.wire.manifests import FileEntry

if TYPE_CHECKING:
    from llmctl.storage.files import Store

CHUNK = 1 << 20


def sha256_stream(stream: BinaryIO) -> tuple[str, int]:
    """(hex digest, bytes) of what is left in `stream`, in bounded memory."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def sha256_file(path: Path) -> tuple[str, int]:
    """(hex digest, bytes) of a local file.

    Raises:
        NotFoundError, TransferError: it can't be read.
    """
    with explained("read", str(path)), path.open("rb") as stream:
        return sha256_stream(stream)


def file_entry(local: Path, path: str) -> FileEntry:
    """The manifest's line for `local`, listed as `path`."""
    digest, size = sha256_file(local)
    return FileEntry(path=path, size=size, sha256=digest)


def check(where: str, entry: FileEntry, sha256: str, size: int) -> None:
    """Compare what was read with what the manifest says.

    Raises:
        IntegrityError: naming the file, what was expected and what was found.
    """
    if size != entry.size:
        raise IntegrityError(f"{where}: expected {entry.size} bytes, found {size}", stage=STAGE)
    if sha256 != entry.sha256:
        raise IntegrityError(f"{where}: expected sha256 {entry.sha256}, found {sha256}", stage=STAGE)


def verify(store: Store, entry: FileEntry) -> None:
    """Read `entry` from `store` and check every byte.

    Raises:
        IntegrityError: size or hash differ.
        NotFoundError, TransferError, DeadlineError: it can't be read.
    """
    with store.open_read(entry.path) as stream:
        digest, size = sha256_stream(stream)
    check(store.where(entry.path), entry, digest, size)
