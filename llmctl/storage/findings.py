"""Every file of a manifest read and compared, several at once: all that is wrong, not only the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llmctl.errors import IntegrityError, NotFoundError
from llmctl.storage.files import Store
from llmctl.storage.hashing import CHUNK, Digest, check, damaged_ranges
from llmctl.wire.manifests import FileEntry

PARALLEL = 8
"""Files under way at once; each holds one piece of CHUNK bytes."""

Progress = Callable[[int], None]
"""Called with the bytes that were just read, from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as the manifest says.

    Attributes:
        path: the file, relative to the manifest; empty where it is about the whole.
        problem: what is wrong, in words, naming the file.
        ranges: the [start, end) bytes that differ, in whole MiB, where they are known.
    """

    path: str
    problem: str
    ranges: tuple[tuple[int, int], ...] = ()


def damages(store: Store, entries: Iterable[FileEntry], progress: Progress | None = None) -> list[Finding]:
    """Read every byte of `entries` and list all files that are missing or differ.

    Raises:
        TransferError, DeadlineError: the store can't be read, which says nothing about the files.
    """

    def look(entry: FileEntry) -> Finding | None:
        return _look(store, entry, progress or (lambda _: None))

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="verify") as pool:
        try:
            return [found for found in pool.map(look, entries) if found is not None]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _look(store: Store, entry: FileEntry, progress: Progress) -> Finding | None:
    digest = Digest()
    try:
        with store.open_read(entry.path) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                progress(len(chunk))
    except NotFoundError as error:
        return Finding(path=entry.path, problem=error.message)
    found = digest.entry(entry.path)
    try:
        check(store.where(entry.path), entry, found)
    except IntegrityError as error:
        ranges = damaged_ranges(entry, found) if found.size == entry.size else []
        return Finding(path=entry.path, problem=error.message, ranges=tuple(ranges))
    return None
