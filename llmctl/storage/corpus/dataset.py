"""What lies at a data URI: one data set, tokens or tars, or a folder of several."""

from __future__ import annotations

import json
from typing import Union

from llmctl.errors import ConfigError, IntegrityError, NotFoundError
from llmctl.storage.files import Store
from llmctl.wire import codec
from llmctl.wire.manifests import SHARD_MANIFEST, TAR, TOKENS, FileEntry, ShardManifest, TarManifest

Manifest = Union[ShardManifest, TarManifest]

ITEM_BYTES = {"uint16": 2, "uint32": 4}
"""Bytes of one token for each dtype that a manifest may name."""


def read_dataset(store: Store) -> Manifest:
    """The manifest of the data set in `store`, of whatever format.

    Raises:
        NotFoundError: there is no data set.
        IntegrityError: not a manifest, or one of a newer kind.
    """
    try:
        text = store.read_bytes(SHARD_MANIFEST)
    except NotFoundError:
        raise NotFoundError(
            f"{store.uri} holds no data set (no {SHARD_MANIFEST})",
            hint=f"make one: llmctl data shard SOURCE... {store.uri}",
        ) from None
    where = store.where(SHARD_MANIFEST)
    kind = _format(text, where)
    if kind == TAR:
        return codec.loads(TarManifest, text)
    if kind != TOKENS:
        raise IntegrityError(f"{where}: unknown format {kind!r}", hint="upgrade llmctl on this machine")
    manifest = codec.loads(ShardManifest, text)
    if manifest.dtype not in ITEM_BYTES:
        raise IntegrityError(f"{where}: unknown dtype {manifest.dtype!r}")
    return manifest


def read_manifest(store: Store) -> ShardManifest:
    """The manifest of the token corpus in `store`.

    Raises:
        ConfigError: tar shards lie there.
        NotFoundError, IntegrityError: as `read_dataset`.
    """
    manifest = read_dataset(store)
    if isinstance(manifest, TarManifest):
        raise ConfigError(
            f"{store.uri} holds tar shards, token shards are needed",
            hint="make them: llmctl data shard SOURCE... DEST; tars are for your own script",
        )
    return manifest


def files_of(manifest: Manifest) -> list[FileEntry]:
    """Every file that the manifest lists."""
    if isinstance(manifest, TarManifest):
        return [shard.file for shard in manifest.shards]
    entries = [entry for shard in manifest.shards for entry in (shard.bin, shard.idx)]
    return [*entries, manifest.tokenizer_file] if manifest.tokenizer_file else entries


def find_datasets(store: Store) -> list[str]:
    """Folders of `store` that hold a data set, at any depth; `` is the store itself."""
    tail = "/" + SHARD_MANIFEST
    paths = ["/" + file.path for file in store.list()]
    return [path[1 : -len(tail)] for path in paths if path.endswith(tail)]


def _format(text: bytes, where: str) -> str:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise IntegrityError(f"{where}: not a manifest: {error}") from None
    if not isinstance(document, dict):
        raise IntegrityError(f"{where}: not a manifest")
    return str(document.get("format", TOKENS))
