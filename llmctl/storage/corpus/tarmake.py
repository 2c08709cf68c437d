"""`shard_tars`: files of any kind to a tar data set in the manner of WebDataset, its manifest written last.

Files whose paths are equal up to the first dot of the name are one sample (`a/7.jpg`, `a/7.cls`) and lie side
by side in one tar. Which samples go where follows from names and sizes alone, so the same input gives the
same bytes, and a run that was ended in the middle goes on behind its last whole shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import BinaryIO, cast

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.corpus import destination, journal
from llmctl.storage.corpus.journal import TarJournal
from llmctl.storage.corpus.progress import Progress
from llmctl.storage.corpus.sources import SourceFile, expand, fingerprint
from llmctl.storage.corpus.tarset import split_name
from llmctl.storage.corpus.upload import Uploads
from llmctl.storage.faults import explained
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import Digest
from llmctl.wire.manifests import TAR, TarManifest, TarShard

SHARD_BYTES = 256 << 20
"""Content per tar, unless one sample alone is larger."""

FORMAT = 1
"""Raised when the same input would give other bytes: part of the settings."""

_SMALL = 1 << 20
"""Files up to this size are read ahead by threads; larger ones stream."""

_AHEAD = 64
"""Small files read ahead at most: with _SMALL a bound on memory."""

_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The files of one sample, by extension; `key` is what their paths have in common."""

    key: str
    files: tuple[SourceFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def shard_tars(
    sources: Sequence[str],
    dest: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> TarManifest:
    """Pack `sources` into a tar data set at `dest`; where that very data set is, it is returned at once.

    Args:
        sources: files, folders, globs or fsspec URLs; a member's name is its path below the folder.
        dest: folder for the data set, a path or fsspec URL.
        shard_bytes: content per tar; a sample is never divided.
        overwrite: replace another data set, or an unfinished one, at `dest`.
        progress: called in this thread after each sample.

    Raises:
        ConfigError: bad arguments, two files of one name, or `dest` holds something else.
        IntegrityError: a file changed while it was read.
        NotFoundError, TransferError, DeadlineError: a store's refusal.
    """
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes is {shard_bytes}, must be at least 1")
    store = open_store(dest)
    files = expand(sources, exclude=store.uri)
    settings: dict[str, object] = {"format": FORMAT, "shard_bytes": shard_bytes}
    identity = json.dumps([TAR, settings, fingerprint(files)], sort_keys=True)
    wanted = hashlib.sha256(identity.encode()).hexdigest()
    samples = samples_of(files)
    with destination.work_folder(store) as work:
        there = destination.finished(store, wanted, overwrite=overwrite)
        if isinstance(there, TarManifest):
            return there
        begun = destination.resumable_tars(store, wanted, overwrite=overwrite)
        shards = _pack(store, samples, shard_bytes, begun, work, progress)
        manifest = _manifest(samples, shards, settings)
        destination.commit(store, manifest, wanted)
    return manifest


def samples_of(files: Iterable[SourceFile]) -> list[Sample]:
    """The files as samples, sorted by key.

    Raises:
        ConfigError: two files would have one name.
    """
    ordered = sorted(files, key=lambda file: split_name(file.path))
    for one, other in pairwise(ordered):
        if one.path == other.path:
            raise ConfigError(
                f"{one.uri} and {other.uri} would both be {one.path}",
                hint="name the folder above both as the source",
            )
    groups = groupby(ordered, key=lambda file: split_name(file.path)[0])
    return [Sample(key=key, files=tuple(group)) for key, group in groups]


def _pack(
    store: Store,
    samples: Sequence[Sample],
    shard_bytes: int,
    begun: TarJournal,
    work: Path,
    progress: Callable[[Progress], None] | None,
) -> tuple[TarShard, ...]:
    state = begun
    total = sum(sample.bytes for sample in samples)
    first = sum(shard.samples for shard in begun.done)
    done_bytes = sum(sample.bytes for sample in samples[:first])

    def done(shard: TarShard) -> None:
        nonlocal state
        state = state.with_shard(shard)
        journal.save(store, state)

    with Uploads(store, done) as uploads, ThreadPoolExecutor(_READERS, "llmctl-read") as threads:
        number = len(begun.done)
        contents = _contents(samples[first:], threads)
        for group in _groups(samples[first:], shard_bytes):
            with _OpenTar(work / f"shard-{number:06d}.tar") as tar:
                for sample in group:
                    for _ in sample.files:
                        tar.add(*next(contents))
                    done_bytes += sample.bytes
                    if progress:
                        progress(_progress(done_bytes, total, number))
            uploads.add(tar.entry(len(group)), [tar.path])
            number += 1
        uploads.finish()
    return state.done


def _groups(samples: Iterable[Sample], shard_bytes: int) -> Iterator[list[Sample]]:
    """The samples of each shard; depends on nothing but their sizes."""
    group: list[Sample] = []
    size = 0
    for sample in samples:
        if group and size + sample.bytes > shard_bytes:
            yield group
            group, size = [], 0
        group.append(sample)
        size += sample.bytes
    if group:
        yield group


def _contents(
    samples: Sequence[Sample], threads: ThreadPoolExecutor
) -> Iterator[tuple[SourceFile, bytes | None]]:
    """Every file in order with its bytes; None: a large one, to be streamed."""

    @cache
    def opened(root: str) -> Store:
        return open_store(root)

    def read(file: SourceFile) -> bytes | None:
        return opened(file.root).read_bytes(file.path) if file.size <= _SMALL else None

    waiting: deque[tuple[SourceFile, Future[bytes | None]]] = deque()
    for file in (file for sample in samples for file in sample.files):
        waiting.append((file, threads.submit(read, file)))
        if len(waiting) >= _AHEAD:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    for file, future in waiting:
        yield file, future.result()


class _OpenTar:
    """A tar that is being written, hashed on the way; its bytes depend on names and contents alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = Digest()
        self._members = 0

    def __enter__(self) -> _OpenTar:
        with explained("write", str(self.path)):
            self._raw = self.path.open("wb")
        out = cast(BinaryIO, _Hashed(self._raw, self._digest))
        self._tar = tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with explained("write", str(self.path)):
                    self._tar.close()
        finally:
            self._raw.close()

    def add(self, file: SourceFile, content: bytes | None) -> None:
        """Append one file; `content` is None where it is to be streamed.

        Raises:
            IntegrityError: it has not the size any more that it was listed with.
        """
        member = tarfile.TarInfo(file.path)
        member.size, member.mode = file.size, 0o644
        self._members += 1
        if content is not None:
            _check_size(file, len(content))
            with explained("write", str(self.path)):
                self._tar.addfile(member, io.BytesIO(content))
            return
        with open_store(file.root).open_read(file.path) as stream, explained("write", str(self.path)):
            source = _Exact(file, stream)
            self._tar.addfile(member, cast(BinaryIO, source))
            source.check_end()

    def entry(self, samples: int) -> TarShard:
        """The manifest's line, once it is closed."""
        return TarShard(file=self._digest.entry(self.path.name), samples=samples, members=self._members)


class _Hashed:
    """A file that is written and hashed at once."""

    def __init__(self, raw: BinaryIO, digest: Digest) -> None:
        self._raw = raw
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._raw.write(data)

    def tell(self) -> int:
        return self._digest.size


class _Exact:
    """A source that must be as long as it was listed: tarfile would cut it, or fail in its own words."""

    def __init__(self, file: SourceFile, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._read += len(data)
        if not data and size:
            _check_size(self._file, self._read)
        return data

    def check_end(self) -> None:
        _check_size(self._file, self._read + len(self._stream.read(1)))


def _check_size(file: SourceFile, found: int) -> None:
    if found != file.size:
        raise IntegrityError(f"{file.uri}: changed while it was read", hint="run the command again")


def _progress(done: int, total: int, shards: int) -> Progress:
    return Progress(bytes_done=done, bytes_total=total, tokens=0, documents=0, shards=shards, skipped=0)


def _manifest(
    samples: Sequence[Sample], shards: tuple[TarShard, ...], settings: dict[str, object]
) -> TarManifest:
    extensions = Counter(split_name(file.path)[1] for sample in samples for file in sample.files)
    return TarManifest(
        samples=len(samples),
        members=sum(len(sample.files) for sample in samples),
        content_bytes=sum(sample.bytes for sample in samples),
        shards=shards,
        extensions=dict(sorted(extensions.items())),
        settings=dict(settings),
    )
