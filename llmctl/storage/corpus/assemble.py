"""The stream of all tokens cut into shards: each written locally, hashed on the way, then sent to the store.

Every shard but the last holds exactly `shard_tokens` tokens; a document that does not fit goes on in the
next shard. So a shard's size is known, memory and disk are bounded whatever a document's length, and since
samples are windows of tokens, a border costs one token, not a document.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import BinaryIO

from llmctl.errors import IntegrityError
from llmctl.storage.corpus.encoder import Encoded
from llmctl.storage.corpus.journal import Done, Journal, Place
from llmctl.storage.corpus.upload import Uploads
from llmctl.storage.faults import explained
from llmctl.storage.hashing import Digest, file_entry
from llmctl.wire.manifests import ShardEntry

_CHUNK = 1 << 20


class Assembler:
    """Takes the units in order and hands whole shards to `uploads`.

    Args:
        folder: where the units' files are and shards are built.
        item: bytes per token.
        begun: the shards that are there already; the first unit is the one in which the last of them ends.

    Attributes:
        tokens, documents: taken so far, those of `begun` included.
    """

    def __init__(
        self,
        uploads: Uploads[Done],
        folder: Path,
        *,
        shard_tokens: int,
        item: int,
        begun: Journal,
    ) -> None:
        self.tokens = sum(shard.entry.tokens for shard in begun.done)
        self.documents = sum(shard.entry.documents for shard in begun.done)
        self._uploads = uploads
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._item = item
        self._number = len(begun.done)
        self._skip = begun.next.tokens
        self._shard: _OpenShard | None = None

    def add(self, unit: Encoded) -> None:
        """Take over the tokens of `unit`, whose files are removed.

        Raises:
            TransferError, DeadlineError: a shard can't be written or stored.
        """
        with explained("write", str(self._folder)):
            starts = _read_starts(unit.idx(self._folder))
            at, self._skip = self._skip, 0
            with unit.bin(self._folder).open("rb") as stream:
                stream.seek(at * self._item)
                while at < unit.tokens:
                    at += self._fill(unit, stream, starts, at)
            unit.bin(self._folder).unlink()
            unit.idx(self._folder).unlink()

    def finish(self) -> None:
        """Store the last shard, which may be a short one, and wait until all are in the store."""
        if self._shard is not None:
            self._close(Place(unit=sys.maxsize, tokens=0))
        self._uploads.finish()

    def _fill(self, unit: Encoded, stream: BinaryIO, starts: array[int], at: int) -> int:
        """Copy as much of the unit as the open shard takes; how many tokens that was."""
        shard = self._shard = self._shard or _OpenShard(self._folder, self._number)
        count = min(unit.tokens - at, self._shard_tokens - shard.tokens)
        self.documents += shard.add_starts(starts, at, count)
        self.tokens += count
        shard.copy(stream, count, self._item)
        if shard.tokens == self._shard_tokens:
            self._close(Place(unit=unit.number, tokens=at + count))
        return count

    def _close(self, following: Place) -> None:
        assert self._shard is not None  # noqa: S101 - for the type checker
        entry, files = self._shard.close()
        self._shard = None
        self._number += 1
        self._uploads.add(Done(entry=entry, next=following), files)


class _OpenShard:
    """A shard that is being filled, in two local files."""

    def __init__(self, folder: Path, number: int) -> None:
        self.tokens = 0
        self._name = f"shard-{number:05d}"
        self._bin = folder / f"{self._name}.bin"
        self._idx = folder / f"{self._name}.idx"
        self._starts = array("Q")
        self._digest = Digest()
        self._bin.unlink(missing_ok=True)

    def add_starts(self, starts: array[int], at: int, count: int) -> int:
        """Note the documents that begin in [at, at + count) of the unit; how many they are."""
        shift = self.tokens - at
        first, last = bisect_left(starts, at), bisect_left(starts, at + count)
        self._starts.extend(start + shift for start in starts[first:last])
        return last - first

    def copy(self, stream: BinaryIO, count: int, item: int) -> None:
        left = count * item
        with self._bin.open("ab") as out:
            while left:
                chunk = stream.read(min(left, _CHUNK))
                if not chunk:
                    raise IntegrityError("an encoder's output is shorter than it said", stage="shard")
                self._digest.update(chunk)
                out.write(chunk)
                left -= len(chunk)
        self.tokens += count

    def close(self) -> tuple[ShardEntry, tuple[Path, Path]]:
        """The manifest's line, and the two files that it is about."""
        if sys.byteorder == "big":
            self._starts.byteswap()
        self._idx.write_bytes(self._starts.tobytes())
        bin_entry = self._digest.entry(self._bin.name)
        idx_entry = file_entry(self._idx, self._idx.name)
        entry = ShardEntry(
            name=self._name,
            tokens=self.tokens,
            documents=len(self._starts),
            bin=bin_entry,
            idx=idx_entry,
        )
        return entry, (self._bin, self._idx)


def _read_starts(path: Path) -> array[int]:
    starts = array("Q")
    starts.frombytes(path.read_bytes())
    return starts
