"""What an unfinished `data shard` has put into its destination, so that a re-run goes on from there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

from llmctl.errors import IntegrityError, NotFoundError
from llmctl.storage.files import Store
from llmctl.storage.hashing import verify
from llmctl.wire import codec
from llmctl.wire.manifests import FileEntry, ShardEntry, TarShard

T = TypeVar("T")

PROGRESS = ".progress.json"
"""The journal's name in the destination; gone once the manifest is there."""

INPUT = ".input.json"
"""Beside a finished manifest: which input it was made of, so that the same command need not run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the stream of all tokens: `tokens` into the output of unit `unit`."""

    unit: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A shard that is whole in the destination, and where the next one begins."""

    entry: ShardEntry
    next: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """`fingerprint` stands for input and settings: another one means another corpus."""

    fingerprint: str
    done: tuple[Done, ...] = ()

    @property
    def next(self) -> Place:
        return self.done[-1].next if self.done else Place(unit=0, tokens=0)

    def with_shard(self, done: Done) -> Journal:
        return Journal(fingerprint=self.fingerprint, done=(*self.done, done))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRecord:
    """Content of INPUT."""

    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TarJournal:
    """As Journal, of a tar data set; which file begins the next shard follows from the input."""

    fingerprint: str
    done: tuple[TarShard, ...] = ()

    def with_shard(self, done: TarShard) -> TarJournal:
        return TarJournal(fingerprint=self.fingerprint, done=(*self.done, done))


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What every journal tells, of whatever format the unfinished data set is."""

    fingerprint: str
    done: tuple[Any, ...] = ()


def load(kind: type[T], store: Store) -> T | None:
    """The journal in `store` as Journal, TarJournal or Begun; None: there is none.

    Raises:
        IntegrityError: what lies there is no such journal.
    """
    try:
        return codec.loads(kind, store.read_bytes(PROGRESS))
    except NotFoundError:
        return None


def save(store: Store, journal: Journal | TarJournal) -> None:
    """Replace the journal in `store`."""
    store.write_bytes(PROGRESS, codec.dumps(journal).encode())


def recorded_input(store: Store) -> str | None:
    """Fingerprint of the input that the finished corpus in `store` was made of, where it is known."""
    try:
        return codec.loads(InputRecord, store.read_bytes(INPUT)).fingerprint
    except (NotFoundError, IntegrityError):
        return None


def intact(store: Store, journal: Journal) -> Journal:
    """`journal` up to the first shard that is missing or damaged: every byte is read."""
    whole = takewhile(lambda done: _is_whole(store, done.entry.bin, done.entry.idx), journal.done)
    return Journal(fingerprint=journal.fingerprint, done=tuple(whole))


def intact_tars(store: Store, journal: TarJournal) -> TarJournal:
    """As `intact`, of a tar data set."""
    whole = takewhile(lambda done: _is_whole(store, done.file), journal.done)
    return TarJournal(fingerprint=journal.fingerprint, done=tuple(whole))


def _is_whole(store: Store, *entries: FileEntry) -> bool:
    try:
        for entry in entries:
            verify(store, entry)
    except (NotFoundError, IntegrityError):
        return False
    return True
