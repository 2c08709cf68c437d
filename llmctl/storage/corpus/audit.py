"""Whether a data set means what it should: `verify` looks at bytes, this at what stands in them.

Right bytes of a wrong corpus have right hashes; so the tokens themselves are read: every id in the
vocabulary, documents where the index says, an end token behind each, counts as the manifest tells them.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from llmctl.errors import ConfigError, NotFoundError
from llmctl.storage.corpus.dataset import ITEM_BYTES, Manifest, files_of
from llmctl.storage.corpus.tarset import split_name
from llmctl.storage.corpus.tokenizer import BYTES
from llmctl.storage.files import Store
from llmctl.storage.findings import Finding, Progress
from llmctl.wire.manifests import SHARD_MANIFEST, ShardEntry, ShardManifest, TarManifest, TarShard

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECE = 4 << 20
"""Tokens looked at together: with their comparisons some tens of MB."""

_NUMBER = re.compile(r"shard-(\d+)(?:\.tar)?")


def audit(store: Store, manifest: Manifest, progress: Progress | None = None) -> list[Finding]:
    """Everything in the data set that does not fit, in the order of the shards.

    Raises:
        ConfigError: numpy is not installed.
        TransferError, DeadlineError: the store can't be read, which says nothing about the data.
    """
    tell = progress or (lambda _: None)
    found = [*_names(manifest), *_strays(store, manifest)]
    if isinstance(manifest, TarManifest):
        return [*found, *_tars(store, manifest, tell)]
    return [*found, *_totals(manifest), *_tokens(store, manifest, tell)]


def _names(manifest: Manifest) -> Iterator[Finding]:
    """Shards are numbered from 0 without a gap."""
    if isinstance(manifest, TarManifest):
        names = [shard.file.path for shard in manifest.shards]
    else:
        names = [shard.name for shard in manifest.shards]
    for place, name in enumerate(names):
        number = _NUMBER.fullmatch(name)
        if number is None or int(number[1]) != place:
            yield Finding(path=name, problem=f"{name} stands at place {place} of the manifest")
            return


def _strays(store: Store, manifest: Manifest) -> Iterator[Finding]:
    listed = {SHARD_MANIFEST, *(entry.path for entry in files_of(manifest))}
    for file in store.list():
        name = file.path.rpartition("/")[2]
        if file.path not in listed and not name.startswith("."):
            yield Finding(path=file.path, problem=f"{store.where(file.path)}: not listed in the manifest")


def _totals(manifest: ShardManifest) -> Iterator[Finding]:
    item = ITEM_BYTES[manifest.dtype]
    for what in ("tokens", "documents"):
        total = sum(getattr(shard, what) for shard in manifest.shards)
        if total != getattr(manifest, what):
            told = f"the manifest says {getattr(manifest, what)} {what}, its shards have {total}"
            yield Finding(path=SHARD_MANIFEST, problem=told)
    full = manifest.settings.get("shard_tokens")
    for shard in manifest.shards:
        if shard.bin.size != shard.tokens * item:
            told = f"{shard.name}: {shard.tokens} tokens in {shard.bin.size} bytes of {manifest.dtype}"
            yield Finding(path=shard.bin.path, problem=told)
        if full is not None and shard is not manifest.shards[-1] and shard.tokens != full:
            told = f"{shard.name}: {shard.tokens} tokens, every shard but the last has {full}"
            yield Finding(path=shard.bin.path, problem=told)


def _tokens(store: Store, manifest: ShardManifest, progress: Progress) -> Iterator[Finding]:
    """The shards one after the other: a document that goes on in the next one needs both."""
    _need_numpy()
    ended: bool | None = True
    for shard in manifest.shards:
        walk = _ShardWalk(store, manifest, shard, progress)
        yield from walk.findings(ended)
        ended = walk.ended
    if ended is False:
        last = manifest.shards[-1].bin.path
        yield Finding(path=last, problem=f"{store.where(last)}: the last document has no end token")


class _ShardWalk:
    """One shard read once, in pieces; `ended`: its last token ends a document, None: it was not read."""

    def __init__(self, store: Store, manifest: ShardManifest, shard: ShardEntry, progress: Progress) -> None:
        self.ended: bool | None = None
        self._store = store
        self._shard = shard
        self._manifest = manifest
        self._progress = progress
        self._is_bytes = manifest.tokenizer == BYTES
        self._limit = max(manifest.vocab_size, manifest.eos + 1)

    def findings(self, ended: bool | None) -> Iterator[Finding]:
        """What is wrong here; `ended`: the shard before ends a document, so one begins here."""
        try:
            starts = self._starts()
        except NotFoundError as error:
            yield Finding(path=self._shard.idx.path, problem=error.message)
            return
        yield from self._index_findings(starts, ended)
        try:
            yield from self._token_findings(starts)
        except NotFoundError as error:
            yield Finding(path=self._shard.bin.path, problem=error.message)

    def _starts(self) -> NDArray[Any]:
        import numpy as np

        raw = self._store.read_bytes(self._shard.idx.path)
        self._progress(len(raw))
        return np.frombuffer(raw[: len(raw) // 8 * 8], dtype="<u8").astype(np.int64)

    def _index_findings(self, starts: NDArray[Any], ended: bool | None) -> Iterator[Finding]:
        path = self._shard.idx.path
        where = self._store.where(path)
        if len(starts) != self._shard.documents or self._shard.idx.size != 8 * len(starts):
            told = f"{where}: {len(starts)} documents, the manifest says {self._shard.documents}"
            yield Finding(path=path, problem=told)
        if len(starts) and (starts[1:] <= starts[:-1]).any():
            place = int((starts[1:] <= starts[:-1]).argmax()) + 1
            yield Finding(path=path, problem=f"{where}: document {place} does not begin behind the last one")
        if len(starts) and not 0 <= int(starts.min()) <= int(starts.max()) < self._shard.tokens:
            yield Finding(path=path, problem=f"{where}: a document begins outside the shard")
        begins = bool(len(starts) and starts[0] == 0)
        if begins and ended is False:
            yield Finding(path=path, problem=f"{where}: a document begins inside the shard before's last one")
        # A text may hold a tokenizer file's end token itself, as words; only bytes can't.
        if ended and not begins and (self._shard is self._manifest.shards[0] or self._is_bytes):
            yield Finding(path=path, problem=f"{where}: no document begins at the first token")

    def _token_findings(self, starts: NDArray[Any]) -> Iterator[Finding]:
        path = self._shard.bin.path
        where = self._store.where(path)
        ends = starts[starts > 0] - 1
        at, worst, missing = 0, -1, -1
        for ids in self._pieces():
            high = int(ids.max())
            if worst < 0 and high >= self._limit:
                worst = at + int((ids >= self._limit).argmax())
                yield Finding(path=path, problem=f"{where}: token {worst} has id {high} >= {self._limit}")
            here = ends[(ends >= at) & (ends < at + len(ids))]
            wrong = here[ids[here - at] != self._manifest.eos]
            if missing < 0 and len(wrong):
                missing = int(wrong[0])
                told = f"{where}: the document that ends at token {missing} has no end token there"
                yield Finding(path=path, problem=told)
            self.ended = bool(ids[-1] == self._manifest.eos)
            at += len(ids)
        if at != self._shard.tokens:
            yield Finding(path=path, problem=f"{where}: {at} tokens, the manifest says {self._shard.tokens}")

    def _pieces(self) -> Iterator[NDArray[Any]]:
        import numpy as np

        item = ITEM_BYTES[self._manifest.dtype]
        with self._store.open_read(self._shard.bin.path) as stream:
            while raw := _read(stream, _PIECE * item):
                self._progress(len(raw))
                if len(raw) >= item:
                    yield np.frombuffer(raw[: len(raw) // item * item], dtype=f"<u{item}")


def _read(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes unless the stream ends: a piece must not end inside a token."""
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _tars(store: Store, manifest: TarManifest, progress: Progress) -> Iterator[Finding]:
    seen: set[str] = set()
    samples = members = 0
    for shard in manifest.shards:
        try:
            keys, count = _keys(store, shard, progress)
        except NotFoundError as error:
            yield Finding(path=shard.file.path, problem=error.message)
            continue
        except tarfile.TarError as error:
            told = f"{store.where(shard.file.path)}: not a whole tar: {error}"
            yield Finding(path=shard.file.path, problem=told)
            continue
        if (len(keys), count) != (shard.samples, shard.members):
            told = (
                f"{store.where(shard.file.path)}: {len(keys)} samples of {count} files, "
                f"the manifest says {shard.samples} of {shard.members}"
            )
            yield Finding(path=shard.file.path, problem=told)
        for name in keys:
            if name in seen:
                told = f"{store.where(shard.file.path)}: sample {name} is not in one piece"
                yield Finding(path=shard.file.path, problem=told)
            seen.add(name)
        samples, members = samples + len(keys), members + count
    if (samples, members) != (manifest.samples, manifest.members):
        told = f"the manifest says {manifest.samples} samples of {manifest.members} files"
        yield Finding(path=SHARD_MANIFEST, problem=f"{told}, its tars have {samples} of {members}")


def _keys(store: Store, shard: TarShard, progress: Progress) -> tuple[list[str], int]:
    """The samples of one tar in their order (one that comes back is named twice), and its files."""
    keys: list[str] = []
    members = 0
    with (
        store.open_read(shard.file.path) as stream,
        tarfile.open(fileobj=cast(BinaryIO, _Counted(stream, progress)), mode="r|") as tar,
    ):
        for member in tar:
            name = split_name(member.name)[0]
            if not keys or keys[-1] != name:
                keys.append(name)
            members += 1
            tar.members = []  # type: ignore[attr-defined]
    return keys, members


class _Counted:
    """A stream that tells how much was read from it."""

    def __init__(self, stream: BinaryIO, progress: Callable[[int], None]) -> None:
        self._stream = stream
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._progress(len(data))
        return data


def _need_numpy() -> None:
    try:
        import numpy  # noqa: F401
    except ImportError:
        raise ConfigError("an audit of tokens needs numpy", hint="pip install numpy") from None
