"""Reading a tar data set: samples as bytes, each exactly once per epoch whatever the number of ranks.

    for sample in TarSet("s3://bucket/images", cache_dir).samples(rank, world, seed=1, epoch=0):
        image, label = sample.files["png"], sample.files["cls"]

The tars are plain WebDataset shards: other libraries read them as well. Standard library only, beside fsspec
for a store that is no folder.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.cache import FileCache
from llmctl.storage.corpus.dataset import read_dataset
from llmctl.storage.corpus.order import key
from llmctl.storage.faults import explained
from llmctl.storage.files import open_store
from llmctl.wire.manifests import TarManifest


class TarSample(NamedTuple):
    """One sample: what the paths of its files have in common, and their bytes by extension."""

    key: str
    files: dict[str, bytes]


def split_name(path: str) -> tuple[str, str]:
    """(key, extension): `a/b.seg.png` is (`a/b`, `seg.png`); without a dot the extension is empty."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension


class TarSet:
    """A tar data set that `llmctl data shard --format tar` made.

    Args:
        uri: its folder, a path or any fsspec URL.
        cache_dir, cache_bytes: as for ShardReader: verified copies of a remote one, which needs the folder.

    Raises:
        ConfigError: token shards lie there, or a cache folder is missing.
        NotFoundError, IntegrityError: no data set, or none that can be read.
    """

    def __init__(self, uri: str, cache_dir: Path | None = None, cache_bytes: int | None = None) -> None:
        self._store = open_store(uri)
        if self._store.local_root is None and cache_dir is None:
            raise ConfigError(f"{self._store.uri} is remote: reading it needs a cache folder")
        manifest = read_dataset(self._store)
        if not isinstance(manifest, TarManifest):
            raise ConfigError(f"{self._store.uri} holds token shards, not tars")
        self.manifest = manifest
        self._cache = FileCache(cache_dir, cache_bytes)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.manifest.samples

    def samples(
        self, rank: int = 0, world: int = 1, *, seed: int | None = None, epoch: int = 0
    ) -> Iterator[TarSample]:
        """This rank's part of one epoch; parts differ by one sample at most, and each sample is in one.

        Args:
            seed: with it the tars come in another order each epoch; inside a tar the order is fixed, so
                shuffle what comes through a buffer. None: as they are numbered.

        Raises:
            IntegrityError: a tar is not what the manifest says.
            NotFoundError, TransferError, DeadlineError: it can't be read or fetched.
        """
        order = self._order(seed, epoch)
        ends = list(accumulate(self.manifest.shards[shard].samples for shard in order))
        first, last = rank * len(self) // world, (rank + 1) * len(self) // world
        for shard, end in zip(order, ends, strict=True):
            start = end - self.manifest.shards[shard].samples
            if start < last and end > first:
                yield from self.read(shard, max(0, first - start), min(end, last) - start)

    def read(self, shard: int, first: int = 0, last: int | None = None) -> Iterator[TarSample]:
        """Samples `first` to `last` of one tar, every byte of which was checked. Raises as `samples`."""
        entry = self.manifest.shards[shard].file
        last = self.manifest.shards[shard].samples if last is None else last
        with (
            self._cache.open(self._store, entry) as stream,
            explained("read", self._store.where(entry.path)),
        ):
            for number, sample in enumerate(_members(tarfile.TarFile(fileobj=stream), first, last)):
                yield sample
                if first + number + 1 == last:
                    return

    def _order(self, seed: int | None, epoch: int) -> list[int]:
        shards = list(range(len(self.manifest.shards)))
        if seed is not None:
            shards.sort(key=lambda shard: key(seed, epoch, "tar", shard))
        return shards


def _members(tar: tarfile.TarFile, first: int, last: int) -> Iterator[TarSample]:
    """Samples `first` to `last`; what is before is passed over by its headers alone."""
    number, current = -1, None
    files: dict[str, bytes] = {}
    for member in tar:
        name, extension = split_name(member.name)
        if name != current:
            if files and current is not None:
                yield TarSample(current, files)
            number, current, files = number + 1, name, {}
            # What was seen is remembered for random access, which a large tar has no use for.
            tar.members = []  # type: ignore[attr-defined]
        if first <= number < last:
            content = tar.extractfile(member)
            if content is None:
                raise IntegrityError(f"{member.name} in a tar is no plain file")
            files[extension] = content.read()
        elif number >= last:
            break
    if files and current is not None:
        yield TarSample(current, files)
