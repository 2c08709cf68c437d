"""Tokens out of shards: from a memory map of a local file whose hash was checked.

A local corpus is read where it lies; a remote one through copies in a cache folder, named by their hash,
that all ranks of a host share.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from llmctl.errors import ConfigError, IntegrityError, LlmctlError
from llmctl.storage.cache import FileCache
from llmctl.storage.corpus.dataset import ITEM_BYTES, read_manifest
from llmctl.storage.corpus.mixture import check_alike
from llmctl.storage.corpus.order import BLOCK_SHARDS, SampleRef, ShardRef
from llmctl.storage.faults import explained
from llmctl.storage.files import open_store
from llmctl.wire.manifests import ShardManifest

MAPS = 4 * BLOCK_SHARDS
"""Shards mapped at a time, which also keeps them in the cache: the blocks under way and those that follow,
of a mixture at both ends of its own block."""


class Reader(Protocol):
    """Random access to the tokens of a corpus, or of a mixture of several.

    Attributes:
        manifest: the corpus, the first one of a mixture: all have the same tokenizer and dtype.
        manifests: those of all corpora.
    """

    manifest: ShardManifest
    manifests: tuple[ShardManifest, ...]

    def read(self, ref: SampleRef, length: int) -> memoryview:
        """`length` tokens from `ref` on, raw little-endian items of the manifest's dtype, not copied.

        Raises:
            IntegrityError: the shard's file is not what the manifest says, or has no such tokens.
            NotFoundError, TransferError, DeadlineError: it can't be read or fetched.
        """

    def prefetch(self, shards: Iterable[ShardRef]) -> None:
        """Fetch and check these shards in the background; a failure shows when one of them is read."""

    def close(self) -> None:
        """End the background work and let go of the maps; views that were handed out stay valid."""


class ShardReader:
    """Random access to the tokens of one corpus; safe to use from several threads.

    Args:
        uri: folder of the corpus, a path or any fsspec URL.
        cache_dir: where copies of remote shards go and where finished checks are remembered, so that a
            restart does not hash again. A remote corpus needs it.
        cache_bytes: how much copies may take there; None: half of what they and the free disk have.
    """

    def __init__(self, uri: str, cache_dir: Path | None = None, cache_bytes: int | None = None) -> None:
        self._store = open_store(uri)
        if self._store.local_root is None and cache_dir is None:
            raise ConfigError(f"{self._store.uri} is remote: reading it needs a cache folder")
        self.manifest = read_manifest(self._store)
        self.manifests: tuple[ShardManifest, ...] = (self.manifest,)
        self._item = ITEM_BYTES[self.manifest.dtype]
        self._cache = FileCache(cache_dir, cache_bytes)
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()
        self._wanted: queue.SimpleQueue[int | None] | None = None

    def read(self, ref: SampleRef, length: int) -> memoryview:
        """As `Reader.read`."""
        shard = self.manifest.shards[ref.shard]
        if ref.start < 0 or ref.start + length > shard.tokens:
            raise IntegrityError(f"{shard.name} has {shard.tokens} tokens, none at {ref.start}+{length}")
        view = memoryview(self._map(ref.shard))
        return view[ref.start * self._item : (ref.start + length) * self._item]

    def prefetch(self, shards: Iterable[ShardRef]) -> None:
        """As `Reader.prefetch`."""
        with self._lock:
            if self._wanted is None:
                self._wanted = queue.SimpleQueue()
                threading.Thread(
                    target=self._fetch_wanted, args=(self._wanted,), name="llmctl-prefetch", daemon=True
                ).start()
            for ref in shards:
                self._wanted.put(ref.shard)

    def close(self) -> None:
        """End the background thread and let go of the maps; views that were handed out stay valid."""
        with self._lock:
            if self._wanted is not None:
                self._wanted.put(None)
                self._wanted = None
            self._maps.clear()

    def _map(self, shard: int) -> mmap.mmap:
        with self._lock:
            if shard in self._maps:
                self._maps.move_to_end(shard)
                return self._maps[shard]
        mapped = self._open(shard)
        with self._lock:
            self._maps[shard] = mapped
            while len(self._maps) > MAPS:
                # Dropped, not closed: a view of it may be in use; it goes with its last view.
                self._maps.popitem(last=False)
        return mapped

    def _open(self, shard: int) -> mmap.mmap:
        entry = self.manifest.shards[shard].bin
        # The map keeps the lock that holds the copy in the cache.
        with self._cache.open(self._store, entry) as stream, explained("map", self._store.where(entry.path)):
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def _fetch_wanted(self, wanted: queue.SimpleQueue[int | None]) -> None:
        while (shard := wanted.get()) is not None:
            try:
                self._map(shard)
            except LlmctlError:
                continue  # whoever reads the shard gets the error, at its own step


class MixtureReader:
    """`Reader` over several corpora; `corpus` of a reference says which one.

    Args:
        uris: their folders, in the order of the mixture.
        cache_dir, cache_bytes: as for ShardReader; they share it.

    Raises:
        ConfigError: their tokens mean different things.
    """

    def __init__(
        self, uris: Sequence[str], cache_dir: Path | None = None, cache_bytes: int | None = None
    ) -> None:
        self._readers = [ShardReader(uri, cache_dir, cache_bytes) for uri in uris]
        self.manifests = tuple(reader.manifest for reader in self._readers)
        self.manifest = self.manifests[0]
        check_alike(self.manifests, uris)

    def read(self, ref: SampleRef, length: int) -> memoryview:
        """As `Reader.read`."""
        return self._readers[ref.corpus].read(ref, length)

    def prefetch(self, shards: Iterable[ShardRef]) -> None:
        """As `Reader.prefetch`; each corpus fetches in a thread of its own."""
        for ref in shards:
            self._readers[ref.corpus].prefetch([ref])

    def close(self) -> None:
        """As `Reader.close`."""
        for reader in self._readers:
            reader.close()


def open_reader(uris: Sequence[str], cache_dir: Path | None = None, cache_bytes: int | None = None) -> Reader:
    """The reader of one corpus or of a mixture; see the classes for arguments and errors."""
    if len(uris) == 1:
        return ShardReader(uris[0], cache_dir, cache_bytes)
    return MixtureReader(uris, cache_dir, cache_bytes)
