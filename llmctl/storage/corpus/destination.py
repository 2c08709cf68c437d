"""Where a corpus is made: what may already be there, the lock, and the commit that makes it a data set."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.errors import ConfigError, DeadlineError
from llmctl.storage.corpus import journal as journals
from llmctl.storage.corpus.dataset import Manifest, files_of, read_dataset
from llmctl.storage.corpus.journal import INPUT, PROGRESS, Begun, InputRecord, Journal, TarJournal
from llmctl.storage.faults import explained
from llmctl.storage.files import Store
from llmctl.storage.findings import damages
from llmctl.storage.locks import locked
from llmctl.wire import codec
from llmctl.wire.manifests import SHARD_MANIFEST

_SHARD_FILE = re.compile(r"shard-\d{5,}\.(bin|idx|tar)")
_WORK_NAME = ".shard.part"


@contextmanager
def work_folder(store: Store) -> Iterator[Path]:
    """A private, empty folder for unfinished files, locked: two runs at one destination would mix.

    Its place is fixed, so that the re-run after a kill removes what the killed one left.

    Raises:
        ConfigError: another process is at work there.
    """
    path = _work_path(store)
    with explained("make", str(path)):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise ConfigError(f"{path} belongs to someone else")
    lock = locked(path, 0.0)
    try:
        lock.__enter__()
    except DeadlineError:
        raise ConfigError(f"{store.uri}: another process is making a data set there") from None
    try:
        for left in path.iterdir():
            left.unlink()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        lock.__exit__(None, None, None)


def _work_path(store: Store) -> Path:
    if store.local_root is not None:
        return store.local_root / _WORK_NAME
    name = hashlib.sha256(store.uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"llmctl-shard-{os.getuid()}-{name}")


def finished(store: Store, wanted: str, *, overwrite: bool) -> Manifest | None:
    """The data set in `store`, if it is the one with fingerprint `wanted`; another one is taken down.

    Raises:
        ConfigError: another data set is there, and `overwrite` was not asked for.
    """
    if not store.exists(SHARD_MANIFEST):
        return None
    if journals.recorded_input(store) == wanted:
        manifest = read_dataset(store)
        # Sizes tell whether a file is missing; who asks to overwrite may know of a damaged one.
        if _complete(store, manifest) and not (overwrite and damages(store, files_of(manifest))):
            return manifest
    elif not overwrite:
        raise ConfigError(
            f"{store.uri} already holds a data set of other input or settings",
            hint="choose another destination, or replace it with --overwrite",
        )
    # Without its manifest it is no data set any more, before the first file of it changes.
    store.delete(SHARD_MANIFEST)
    store.delete(INPUT)
    return None


def _complete(store: Store, manifest: Manifest) -> bool:
    sizes = {file.path: file.size for file in store.list()}
    return all(sizes.get(entry.path) == entry.size for entry in files_of(manifest))


def resumable(store: Store, wanted: str, *, overwrite: bool) -> Journal:
    """What of the corpus `wanted` is already in `store` and right, every byte of it read.

    Raises:
        ConfigError: the unfinished one there is another, and `overwrite` was not asked for.
    """
    journal = journals.load(Journal, store) if _is_begun(store, wanted, overwrite=overwrite) else None
    return journals.intact(store, journal) if journal else Journal(fingerprint=wanted)


def resumable_tars(store: Store, wanted: str, *, overwrite: bool) -> TarJournal:
    """As `resumable`, of a tar data set."""
    journal = journals.load(TarJournal, store) if _is_begun(store, wanted, overwrite=overwrite) else None
    return journals.intact_tars(store, journal) if journal else TarJournal(fingerprint=wanted)


def _is_begun(store: Store, wanted: str, *, overwrite: bool) -> bool:
    """Whether `wanted` is what lies there unfinished; another one's journal is removed."""
    _clear_leftovers(store)
    found = journals.load(Begun, store)
    if found is not None and found.fingerprint == wanted:
        return True
    # Without a whole shard, as after a wrong --field, there is nothing that another command could spoil.
    if found is not None and found.done and not overwrite:
        raise ConfigError(
            f"{store.uri} holds an unfinished data set of other input or settings",
            hint="run the command that began it, or replace it with --overwrite",
        )
    store.delete(PROGRESS)
    return False


def _clear_leftovers(store: Store) -> None:
    """Remove what a killed run was writing here. Folders below may be other data sets, at work just now."""
    if store.local_root is None:
        if not any("/" in file.path for file in store.list()):
            store.cleanup(0.0)
        return
    with explained("clean up", store.uri):
        for path in store.local_root.glob(".*.part"):
            if path.is_file():
                path.unlink(missing_ok=True)


def commit(store: Store, manifest: Manifest, wanted: str) -> None:
    """Write the manifest, after everything that it lists; then the journal goes."""
    listed = {entry.path for entry in files_of(manifest)}
    for file in store.list():
        # Left by a longer corpus that this one replaces.
        if _SHARD_FILE.fullmatch(file.path) and file.path not in listed:
            store.delete(file.path)
    store.write_bytes(INPUT, codec.dumps(InputRecord(fingerprint=wanted)).encode())
    store.write_bytes(SHARD_MANIFEST, codec.dumps(manifest).encode())
    store.delete(PROGRESS)
