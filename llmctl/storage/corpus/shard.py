"""`shard`: text in any form to a corpus of token shards with a manifest, written last.

The same input and settings give the same bytes, whatever the number of workers: the input is cut into units
by fixed rules, units are encoded by many processes, and their tokens are joined in order. A run that was
ended in the middle leaves whole shards and a journal; the same command goes on behind them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.storage.corpus import destination, journal
from llmctl.storage.corpus.assemble import Assembler
from llmctl.storage.corpus.dataset import ITEM_BYTES
from llmctl.storage.corpus.encoder import Encoded, EncodeSetup, UnitEncoder
from llmctl.storage.corpus.journal import Done, Journal
from llmctl.storage.corpus.pool import EncoderPool
from llmctl.storage.corpus.progress import Progress
from llmctl.storage.corpus.sources import SourceFile, Unit, expand, fingerprint, units
from llmctl.storage.corpus.tokenizer import BYTES, FileTokenizer, Tokenizer, open_tokenizer
from llmctl.storage.corpus.upload import Uploads
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import file_entry
from llmctl.wire.manifests import FileEntry, ShardManifest

SHARD_TOKENS = 32 << 20
"""Tokens per shard: 64 MiB as uint16."""

TOKENIZER_FILE = "tokenizer.json"
FORMAT = 1
"""Raised when the same input would give other bytes: part of the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is to be made of what; `fingerprint` stands for all of it."""

    files: list[SourceFile]
    tokenizer: Tokenizer
    dtype: str
    field: str
    shard_tokens: int
    settings: dict[str, object]
    fingerprint: str


def shard(
    sources: Sequence[str],
    dest: str,
    *,
    tokenizer: str = BYTES,
    eos: str | int | None = None,
    field: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> ShardManifest:
    """Tokenise `sources` into a corpus at `dest`; where that very corpus is, it is returned at once.

    Args:
        sources: files, folders, globs or fsspec URLs; the module `sources` says what they may hold.
        dest: folder for the corpus, a path or fsspec URL.
        tokenizer: `bytes`, or path or URL of a Hugging Face `tokenizer.json`, stored beside the shards.
        eos: the tokenizer's token that ends a document, where its name is none of the usual ones.
        field: key or column of JSON lines and parquet.
        shard_tokens: tokens per shard; a longer document goes on in the next one.
        workers: processes; None: one per usable core.
        dtype: `auto` (uint16 where the vocabulary fits), `uint16` or `uint32`.
        overwrite: replace another corpus, or an unfinished one, at `dest`.
        progress: called in this thread after each unit.

    Raises:
        ConfigError: bad arguments, no text in the input, or `dest` holds something else.
        IntegrityError: damaged input, naming file and line.
        NotFoundError, TransferError, DeadlineError: a store's refusal.
    """
    store = open_store(dest)
    plan = _plan(sources, store, open_tokenizer(tokenizer, eos=eos), field, shard_tokens, dtype)
    with destination.work_folder(store) as work:
        there = destination.finished(store, plan.fingerprint, overwrite=overwrite)
        if isinstance(there, ShardManifest):
            return there
        begun = destination.resumable(store, plan.fingerprint, overwrite=overwrite)
        whole = _encode_all(store, plan, begun, work, workers, progress)
        manifest = _manifest(store, plan, whole, work)
        destination.commit(store, manifest, plan.fingerprint)
    return manifest


def _plan(
    sources: Sequence[str], store: Store, tokenizer: Tokenizer, field: str, shard_tokens: int, dtype: str
) -> _Plan:
    if shard_tokens < 2:
        raise ConfigError(f"shard_tokens is {shard_tokens}, must be at least 2")
    files = expand(sources, exclude=store.uri)
    settings: dict[str, object] = {"format": FORMAT, "field": field, "shard_tokens": shard_tokens}
    chosen = _dtype(dtype, tokenizer)
    identity = [settings, chosen, tokenizer.eos, _identity(tokenizer), fingerprint(files)]
    return _Plan(
        files=files,
        tokenizer=tokenizer,
        dtype=chosen,
        field=field,
        shard_tokens=shard_tokens,
        settings=settings,
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
    )


def _dtype(asked: str, tokenizer: Tokenizer) -> str:
    fits = max(tokenizer.vocab_size, tokenizer.eos + 1) <= 1 << 16
    if asked == "auto":
        return "uint16" if fits else "uint32"
    if asked not in ITEM_BYTES:
        raise ConfigError(f"dtype {asked!r} is none of auto, uint16, uint32")
    if asked == "uint16" and not fits:
        raise ConfigError(f"uint16 can't hold the {tokenizer.vocab_size} ids of {tokenizer.name}")
    return asked


def _identity(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.document).hexdigest() if isinstance(tokenizer, FileTokenizer) else BYTES


def _encode_all(
    store: Store,
    plan: _Plan,
    begun: Journal,
    work: Path,
    workers: int | None,
    progress: Callable[[Progress], None] | None,
) -> Journal:
    """Everything behind `begun` into shards; the journal of all of them."""
    state = begun

    def done(shard: Done) -> None:
        nonlocal state
        state = state.with_shard(shard)
        journal.save(store, state)

    with Uploads(store, done) as uploads:
        assembler = Assembler(
            uploads, work, shard_tokens=plan.shard_tokens, item=ITEM_BYTES[plan.dtype], begun=begun
        )
        meter = _Meter(plan.files, assembler, progress)
        todo = meter.pass_over(units(plan.files, plan.field), begun.next.unit)
        with closing(_encoded(plan, todo, work, workers)) as results:
            for encoded in results:
                assembler.add(encoded)
                meter.count(encoded, len(state.done))
        assembler.finish()
    return state


def _encoded(
    plan: _Plan, todo: Iterable[Unit], work: Path, workers: int | None
) -> Generator[Encoded, None, None]:
    """The units' results in order."""
    setup = EncodeSetup(
        tokenizer=BYTES,
        eos=plan.tokenizer.eos,
        dtype=f"<u{ITEM_BYTES[plan.dtype]}",
        field=plan.field,
        folder=str(work),
    )
    if any(file.root.startswith("memory:") for file in plan.files):
        # This process's memory is nobody else's.
        encoder = UnitEncoder(setup, plan.tokenizer, lambda: None)
        yield from map(encoder.encode, todo)
        return
    if isinstance(plan.tokenizer, FileTokenizer):
        setup = replace(setup, tokenizer=str(_tokenizer_file(plan.tokenizer, work)))
    with EncoderPool(setup, workers or len(os.sched_getaffinity(0))) as pool:
        yield from pool.run(todo)


def _tokenizer_file(tokenizer: FileTokenizer, work: Path) -> Path:
    path = work / TOKENIZER_FILE
    path.write_bytes(tokenizer.document)
    return path


class _Meter:
    """Adds up what the progress callback is told."""

    def __init__(
        self, files: list[SourceFile], assembler: Assembler, tell: Callable[[Progress], None] | None
    ) -> None:
        self._total = sum(file.size for file in files)
        self._assembler = assembler
        self._bytes = self._skipped = 0
        self._tell = tell

    def pass_over(self, stream: Iterable[Unit], first: int) -> Iterator[Unit]:
        """The units from `first` on; those before were done by an earlier run."""
        for unit in stream:
            if unit.number >= first:
                yield unit
            else:
                self._bytes += unit.bytes

    def count(self, unit: Encoded, shards: int) -> None:
        self._bytes += unit.bytes
        self._skipped += unit.skipped
        if self._tell is None:
            return
        self._tell(
            Progress(
                bytes_done=min(self._bytes, self._total),
                bytes_total=self._total,
                tokens=self._assembler.tokens,
                documents=self._assembler.documents,
                shards=shards,
                skipped=self._skipped,
            )
        )


def _manifest(store: Store, plan: _Plan, whole: Journal, work: Path) -> ShardManifest:
    shards = tuple(done.entry for done in whole.done)
    if not shards:
        raise ConfigError("the input holds no text", hint="every file of it is empty or binary")
    stored: FileEntry | None = None
    if isinstance(plan.tokenizer, FileTokenizer):
        local = _tokenizer_file(plan.tokenizer, work)
        store.put_file(local, TOKENIZER_FILE)
        stored = file_entry(local, TOKENIZER_FILE)
    return ShardManifest(
        dtype=plan.dtype,
        vocab_size=plan.tokenizer.vocab_size,
        eos=plan.tokenizer.eos,
        tokenizer=stored.path if stored else BYTES,
        tokens=sum(entry.tokens for entry in shards),
        documents=sum(entry.documents for entry in shards),
        shards=shards,
        tokenizer_file=stored,
        settings=dict(plan.settings),
    )
