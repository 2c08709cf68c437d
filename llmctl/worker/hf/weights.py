"""Where a model's weights can come from: a Hugging Face folder, or a committed checkpoint of ours.

Both give the same: the decoder's shape, the small files that go along, and tensors by our names, one after
the other. A checkpoint of adapters gives its base model with the adapters merged in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llmctl.errors import IntegrityError, NotFoundError
from llmctl.storage.cache import fetch
from llmctl.storage.checkpoints import committed_steps, verify_files
from llmctl.storage.files import Store, open_store
from llmctl.storage.uris import join
from llmctl.wire.codec import decode, loads
from llmctl.wire.manifests import COMMIT_MARKER, BaseWeights, CheckpointManifest, FileEntry, checkpoint_name
from llmctl.wire.model import ModelConfig, parse_model_config
from llmctl.wire.recipe import LoraSpec
from llmctl.worker.checkpoint.load import read_tensors
from llmctl.worker.checkpoint.state import MODEL
from llmctl.worker.hf.folder import STAGE, open_folder, shapes
from llmctl.worker.lora import adapter_shapes, merged

GROUP_BYTES = 256 << 20
"""Of a checkpoint, so much is read at once; every read has a fixed cost."""


WEIGHTS_ONLY = "weights_only"
"""Key in a marker's `data`: there are no optimizer moments, so a training can begin from it, not go on."""


class Weights(Protocol):
    """A model that can be read.

    Attributes:
        where: its place, for messages.
        config: its shape.
        carried: small files that belong to it (config.json, tokenizer ...), by name.
    """

    @property
    def where(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def carried(self) -> Mapping[str, bytes]: ...

    def items(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """(our name, whole tensor) of each of `names`, in any order; any floating dtype, on the CPU."""

    def fingerprint(self) -> tuple[FileEntry, ...]:
        """Hashes of the files that hold it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint of plain weights, or of adapters; opened, but nothing of it verified yet.

    Attributes:
        scratch: where files of a remote store are copied to.
    """

    store: Store
    scratch: Path
    manifest: CheckpointManifest

    @property
    def where(self) -> str:
        return self.store.uri

    @cached_property
    def folder(self) -> Path:
        """Its files where torch can read them, each verified by now.

        Raises:
            IntegrityError: names the file that is not what was saved.
        """
        if self.store.local_root is not None:
            verify_files(self.store, "", self.manifest)
            return self.store.local_root
        for entry in self.manifest.files:
            fetch(self.store, entry, self.scratch / entry.path)
        return self.scratch

    @cached_property
    def config(self) -> ModelConfig:
        return parse_model_config(self.manifest.model)

    @cached_property
    def carried(self) -> dict[str, bytes]:
        """Every file but torch's own."""
        names = [entry.path for entry in self.manifest.files if is_carried(entry.path)]
        return {name: self.store.read_bytes(name) for name in names}

    @property
    def lora(self) -> LoraSpec | None:
        """What its adapters are, where it holds adapters."""
        if self.manifest.base is None:
            return None
        return decode(LoraSpec, self.manifest.recipe["lora"])

    def fingerprint(self) -> tuple[FileEntry, ...]:
        return self.manifest.files

    def items(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        known = shapes(self.config)
        return self.read({name: known[name] for name in names})

    def read(self, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors `wanted`, which are of these shapes, in fp32."""
        group: dict[str, Tensor] = {}
        size = 0
        for name, shape in wanted.items():
            group[MODEL + name] = torch.empty(shape)
            size += group[MODEL + name].nbytes
            if size >= GROUP_BYTES:
                yield from self._read(group)
                group, size = {}, 0
        yield from self._read(group)

    def _read(self, group: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        if group:
            read_tensors(self.folder, group)
        for name, tensor in group.items():
            yield name.removeprefix(MODEL), tensor


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A base model and a checkpoint of its adapters, as one plain model."""

    base: Weights
    adapters: Checkpoint
    spec: LoraSpec

    @property
    def where(self) -> str:
        return self.adapters.where

    @property
    def config(self) -> ModelConfig:
        return self.adapters.config

    @property
    def carried(self) -> Mapping[str, bytes]:
        return self.adapters.carried

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """A and B of every adapter, by parameter name."""
        return dict(self.adapters.read(adapter_shapes(shapes(self.config), self.spec)))

    def items(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        return merged(self.base.items(names), self.tensors.get, self.spec)

    def fingerprint(self) -> tuple[FileEntry, ...]:
        return (*self.base.fingerprint(), *self.adapters.fingerprint())


def is_carried(name: str) -> bool:
    """Whether a file of a checkpoint is one that goes along, not one of torch's."""
    return not name.startswith(".") and not name.endswith(".distcp")


@contextmanager
def open_weights(uri: str, *, base: str | None = None) -> Iterator[Weights]:
    """The model at `uri`: a Hugging Face folder, a checkpoint, or a folder of checkpoints (its newest).

    Args:
        base: where the frozen weights of a checkpoint of adapters are now, if no longer where they were.

    Raises:
        NotFoundError: no model there. IntegrityError: a file is not what was saved. ConfigError: a model
        that our decoder can't be.
    """
    store = open_store(uri)
    found = find_checkpoint(store)
    if found is None:
        yield open_folder(uri)
        return
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(found))
        wanted, spec = checkpoint.manifest.base, checkpoint.lora
        if wanted is None or spec is None:
            yield checkpoint
            return
        try:
            below = stack.enter_context(open_weights(base or wanted.uri))
        except NotFoundError as error:
            hint = "these are adapters; say where their base model is now: --base URI"
            raise NotFoundError(error.message, hint=hint, stage=STAGE) from None
        check_same_base(wanted, below)
        yield Adapted(base=below, adapters=checkpoint, spec=spec)


def check_same_base(wanted: BaseWeights, weights: Weights) -> None:
    """Refuse a base model other than the one that adapters were trained on.

    Raises:
        IntegrityError: names the first file that differs.
    """
    found = {entry.path: entry.sha256 for entry in weights.fingerprint()}
    differs = [entry.path for entry in wanted.files if found.get(entry.path) != entry.sha256]
    if differs:
        raise IntegrityError(
            f"{weights.where} is not the model that the adapters were trained on: {differs[0]} differs",
            hint=f"it was {wanted.uri}",
            stage=STAGE,
        )


def find_checkpoint(store: Store) -> Store | None:
    """The committed checkpoint that `store` is, or the newest in it or in the `checkpoints` of a run that was
    pulled to it; None: there is none."""
    if store.exists(COMMIT_MARKER):
        return store
    for place in (store, open_store(join(store.uri, "checkpoints"))):
        steps = committed_steps(place)
        if steps:
            return open_store(join(place.uri, checkpoint_name(steps[-1])))
    return None


@contextmanager
def open_checkpoint(store: Store) -> Iterator[Checkpoint]:
    """The checkpoint that `store` is; copies of remote files last as long as the context.

    Raises:
        NotFoundError: it is none. IntegrityError: its marker is damaged.
    """
    manifest = loads(CheckpointManifest, store.read_bytes(COMMIT_MARKER))
    with tempfile.TemporaryDirectory(prefix="llmctl-checkpoint-") as scratch:
        yield Checkpoint(store=store, scratch=Path(scratch), manifest=manifest)
