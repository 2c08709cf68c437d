"""The data sets at a URI: the one that lies there, or all in the folders below."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llmctl.errors import IntegrityError, NotFoundError
from llmctl.storage.corpus.dataset import Manifest, files_of, find_datasets, read_dataset
from llmctl.storage.files import Store, open_store
from llmctl.storage.uris import join
from llmctl.wire.manifests import SHARD_MANIFEST

PARALLEL = 8
"""Manifests read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set; `manifest` is None where it can't be read, and `problem` says why."""

    store: Store
    manifest: Manifest | None
    problem: str = ""

    @property
    def bytes(self) -> int:
        """Size of everything that the manifest lists."""
        return sum(entry.size for entry in files_of(self.manifest)) if self.manifest else 0


def survey(uri: str) -> list[DataSet]:
    """The data set at `uri`, or those below, by name.

    Raises:
        NotFoundError: there is none.
        ConfigError, TransferError, DeadlineError: the store can't be opened or read.
    """
    store = open_store(uri)
    if store.exists(SHARD_MANIFEST):
        return [_read(store)]
    found = find_datasets(store)
    if not found:
        raise NotFoundError(
            f"{store.uri} holds no data set (no {SHARD_MANIFEST})",
            hint=f"make one: llmctl data shard SOURCE... {store.uri}",
        )
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="manifests") as pool:
        return list(pool.map(lambda name: _read(open_store(join(uri, name))), sorted(found)))


def _read(store: Store) -> DataSet:
    try:
        return DataSet(store=store, manifest=read_dataset(store))
    except IntegrityError as error:
        return DataSet(store=store, manifest=None, problem=error.message)
