"""Checkpoints of ours, made from a Hugging Face folder (`import_model`) or written anew (`reshard`).

Both become visible whole or not at all, like a checkpoint that a training saved.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.errors import ConfigError
from llmctl.storage.checkpoints import committed_steps, publish, temporary_folder
from llmctl.storage.corpus.tokenizer import FileTokenizer
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import Digest, file_entry
from llmctl.wire.codec import encode
from llmctl.wire.manifests import CheckpointManifest, checkpoint_name
from llmctl.worker.checkpoint.load import quiet_alone, read_tensors
from llmctl.worker.checkpoint.state import MODEL
from llmctl.worker.hf.folder import TOKENIZER, HfFolder, shapes
from llmctl.worker.hf.weights import WEIGHTS_ONLY, Checkpoint

STAGE = "checkpoint"
IMPORTED = "import"
"""The run id of a checkpoint that no run has made."""


def import_model(
    source: HfFolder, uri: str, *, files: int = 1, overwrite: bool = False
) -> CheckpointManifest:
    """Write a Hugging Face model as checkpoint 0 of the place `uri`: its weights in fp32, without moments.

    Raises:
        ConfigError: there is a checkpoint 0 already. IntegrityError: the folder is not what it says it is.
    """
    store = _free_place(uri, 0, overwrite=overwrite)
    source.check()
    known = shapes(source.config)
    template = CheckpointManifest(
        run_id=IMPORTED,
        attempt=1,
        step=0,
        world_size=1,
        created_at=time.time(),
        files=(),
        model=encode(source.config),
        data={**_tokenizer_of(source), WEIGHTS_ONLY: True, "source": source.where},
    )
    with _scratch(store) as scratch:
        tensors = on_disk({MODEL + name: (torch.float32, shape) for name, shape in known.items()}, scratch)
        for name, tensor in source.items(list(known)):
            tensors[MODEL + name].copy_(tensor)
        return _write(store, template, tensors, source.carried, files=files)


def reshard(source: Checkpoint, uri: str, *, files: int, overwrite: bool = False) -> CheckpointManifest:
    """Write every tensor of a checkpoint, moments and random states too, as `files` files to the place `uri`.

    Raises:
        ConfigError: there is a checkpoint of that step already.
    """
    store = _free_place(uri, source.manifest.step, overwrite=overwrite)
    if store.where(checkpoint_name(source.manifest.step)) == str(source.folder):
        raise ConfigError(f"{source.where} can't be rewritten onto itself", hint="name another DEST")
    with _scratch(store) as scratch:
        tensors = on_disk(saved_shapes(source.folder), scratch)
        read_tensors(source.folder, tensors)
        return _write(store, source.manifest, tensors, source.carried, files=files)


def saved_shapes(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every tensor in a checkpoint's local folder."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: (value.properties.dtype, tuple(value.size))
        for name, value in saved.items()
        if isinstance(value, TensorStorageMetadata)
    }


def on_disk(wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], scratch: Path) -> dict[str, Tensor]:
    """Tensors whose memory is a file each in `scratch`: a model larger than the memory passes through."""
    found: dict[str, Tensor] = {}
    for number, (name, (dtype, shape)) in enumerate(wanted.items()):
        count = torch.Size(shape).numel()
        if count == 0:
            found[name] = torch.empty(shape, dtype=dtype)
            continue
        path = str(scratch / f"{number}.part")
        found[name] = torch.from_file(path, shared=True, size=count, dtype=dtype).view(shape)
    return found


def _write(
    store: Store,
    template: CheckpointManifest,
    tensors: dict[str, Tensor],
    carried: Mapping[str, bytes],
    *,
    files: int,
) -> CheckpointManifest:
    """Write, hash, upload where needed, and commit."""
    temporary = temporary_folder(template.step, template.run_id, template.attempt)
    with _desk(store, temporary) as folder:
        for name, content in carried.items():
            (folder / name).write_bytes(content)
        _save(folder, tensors, files)
        entries = tuple(file_entry(path, path.name) for path in sorted(folder.iterdir()))
        manifest = dataclasses.replace(template, files=entries)
        if store.local_root is None:
            for entry in entries:
                store.put_file(folder / entry.path, f"{checkpoint_name(manifest.step)}/{entry.path}")
        publish(store, None if store.local_root is None else temporary, manifest)
    return manifest


def _save(folder: Path, tensors: dict[str, Tensor], files: int) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with quiet_alone():
        save(tensors, storage_writer=FileSystemWriter(folder, thread_count=files), no_dist=True)


@contextmanager
def _desk(store: Store, temporary: str) -> Iterator[Path]:
    """A local folder to write in: in the store itself where that is local, so that a rename is enough."""
    if store.local_root is None:
        with tempfile.TemporaryDirectory(prefix="llmctl-checkpoint-") as scratch:
            yield Path(scratch)
        return
    folder = store.local_root / temporary
    store.delete(temporary)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        store.delete(temporary)


@contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    """Room for the tensors on the disk of the destination, where there is one: it must hold them anyway."""
    if store.local_root is not None:
        store.local_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tensors-", suffix=".part", dir=store.local_root) as folder:
        yield Path(folder)


def _free_place(uri: str, step: int, *, overwrite: bool) -> Store:
    store = open_store(uri)
    if step in committed_steps(store) and not overwrite:
        raise ConfigError(
            f"{store.where(checkpoint_name(step))} is there already",
            hint="name another folder, or --overwrite",
            stage=STAGE,
        )
    return store


def _tokenizer_of(source: HfFolder) -> dict[str, Any]:
    """What a marker says of the tokenizer, from the folder's own files."""
    document = source.carried.get(TOKENIZER)
    if document is None:
        return {}
    named = source.document.get("eos_token_id")
    eos = named[0] if isinstance(named, list) and named else named
    tokenizer = FileTokenizer(TOKENIZER, document, eos if isinstance(eos, int) else None)
    digest = Digest()
    digest.update(document)
    return {
        "tokenizer": TOKENIZER,
        "tokenizer_file": encode(digest.entry(TOKENIZER)),
        "vocab_size": tokenizer.vocab_size,
        "eos": tokenizer.eos,
    }
