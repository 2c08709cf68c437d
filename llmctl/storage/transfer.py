"""Many files at once between this machine and a store: every byte hashed, failures retried, reruns short.

Memory does not grow with the corpus: a few files are under way, each in pieces, and the parts of all uploads
of a process share one limit (`drivers/parts.py`). Large files come and go in several parts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from llmctl.errors import ConfigError, DeadlineError, IntegrityError, LlmctlError, TransferError
from llmctl.storage.faults import STAGE
from llmctl.storage.files import Store
from llmctl.storage.hashing import file_entry
from llmctl.wire.manifests import FileEntry

WORKERS = 8
ROUNDS = 2
"""How often a file is begun, beside the retries inside its calls: again once all others are through."""

_WAITING = 4
"""Files per worker that are queued; the rest of a long list is not even looked at."""

_SHOWN = 3

Pair = tuple[Path, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One file that is now where it should be.

    Attributes:
        entry: its fingerprint; keep it, and the next run need not send the file again.
        skipped: it was there already.
        files, bytes: through so far, this one included, skipped ones too.
    """

    entry: FileEntry
    skipped: bool
    files: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy did.

    Attributes:
        files: the fingerprints of all files, sorted by path.
        moved, skipped: paths that travelled, and that were there already.
        bytes: that travelled.
    """

    files: tuple[FileEntry, ...]
    moved: tuple[str, ...]
    skipped: tuple[str, ...]
    bytes: int


Progress = Callable[[Moved], object]


def copy_in(
    store: Store,
    files: Iterable[Pair],
    *,
    known: Mapping[str, FileEntry] | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Copied:
    """Copy local files into `store`: pairs of local path and path there.

    Args:
        known: by path there, what an earlier run has sent (its `Moved.entry`): a file that is still the same
            here and is there in that size is not sent again.
        progress: called in this thread after each file.

    Raises:
        TransferError, IntegrityError, DeadlineError, NotFoundError: files failed for good, the first ones are
            named; all others are there.
    """
    known = known or {}
    there = {file.path: file.size for file in store.list()} if known else {}

    def one(pair: Pair) -> tuple[FileEntry, bool]:
        local, path = pair
        sent = known.get(path)
        if sent is not None and there.get(path) == sent.size and _is_same(local, sent):
            return sent, True
        return store.put_file(local, path), False

    return _many(one, files, store.uri, workers, progress)


def copy_out(
    store: Store,
    files: Iterable[Pair],
    *,
    known: Mapping[str, FileEntry] | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Copied:
    """Copy files out of `store`: pairs of local path and path there; each appears whole or not at all.

    Args:
        known: by path there, what each file must be: its manifest's line. Other bytes are refused; a local
            file that is it already is not fetched again.

    Raises:
        as `copy_in`.
    """
    known = known or {}

    def one(pair: Pair) -> tuple[FileEntry, bool]:
        local, path = pair
        expected = known.get(path)
        if expected is not None and local.is_file() and _is_same(local, expected):
            return expected, True
        return store.get_file(path, local, expected=expected), False

    return _many(one, files, store.uri, workers, progress)


def _is_same(local: Path, entry: FileEntry) -> bool:
    # The size first: it spares reading most files that differ.
    return local.stat().st_size == entry.size and file_entry(local, entry.path).sha256 == entry.sha256


@dataclass(slots=True)
class _Tally:
    """What is through."""

    progress: Progress | None
    entries: dict[str, FileEntry] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    bytes: int = 0

    def add(self, path: str, entry: FileEntry, skipped: bool) -> None:
        if path in self.entries:
            raise ConfigError(f"{path}: named twice in one copy", stage=STAGE)
        self.entries[path] = entry
        self.bytes += entry.size
        if skipped:
            self.skipped.add(path)
        if self.progress:
            self.progress(Moved(entry=entry, skipped=skipped, files=len(self.entries), bytes=self.bytes))

    def result(self) -> Copied:
        moved = sorted(self.entries.keys() - self.skipped)
        return Copied(
            files=tuple(self.entries[path] for path in sorted(self.entries)),
            moved=tuple(moved),
            skipped=tuple(sorted(self.skipped)),
            bytes=sum(self.entries[path].size for path in moved),
        )


def _many(
    one: Callable[[Pair], tuple[FileEntry, bool]],
    files: Iterable[Pair],
    uri: str,
    workers: int,
    progress: Progress | None,
) -> Copied:
    tally = _Tally(progress)
    failed: list[tuple[Pair, LlmctlError]] = []
    todo: Iterable[Pair] = files
    for turn in range(ROUNDS):
        failed = _round(one, todo, workers, tally)
        # What is refused for good, a missing file first of all, is not asked for again.
        final = [error for _, error in failed if not _may_pass(error)]
        if not failed or final or turn + 1 == ROUNDS:
            break
        todo = [pair for pair, _ in failed]
    if failed:
        raise _summed([error for _, error in failed], len(tally.entries), uri)
    return tally.result()


def _round(
    one: Callable[[Pair], tuple[FileEntry, bool]], files: Iterable[Pair], workers: int, tally: _Tally
) -> list[tuple[Pair, LlmctlError]]:
    """One pass over `files`; the ones that failed. Ctrl-C, or a bug, ends it after the files under way."""
    failed: list[tuple[Pair, LlmctlError]] = []
    running: dict[Future[tuple[FileEntry, bool]], Pair] = {}

    def collect(until: int) -> None:
        while len(running) > until:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pair = running.pop(future)
                try:
                    entry, skipped = future.result()
                except (LlmctlError, OSError) as error:
                    failed.append((pair, _ours(error, pair)))
                else:
                    tally.add(pair[1], entry, skipped)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="llmctl-copy")
    try:
        for pair in files:
            running[pool.submit(one, pair)] = pair
            collect(workers * _WAITING)
        collect(0)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def _ours(error: LlmctlError | OSError, pair: Pair) -> LlmctlError:
    if isinstance(error, LlmctlError):
        return error
    return TransferError(f"{pair[0]}: {error.strerror or error}", stage=STAGE)


def _may_pass(error: LlmctlError) -> bool:
    return isinstance(error, (TransferError, DeadlineError, IntegrityError))


def _summed(errors: list[LlmctlError], through: int, uri: str) -> LlmctlError:
    """All failures as one error, of the class of the first: the exit code tells what happened."""
    first = errors[0]
    if len(errors) == 1:
        return first
    told = "; ".join(error.message for error in errors[:_SHOWN])
    more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    message = f"{uri}: {len(errors)} of {len(errors) + through} files failed: {told}{more}"
    return type(first)(message, hint=first.hint, stage=STAGE)
