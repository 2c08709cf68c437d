"""From storage's verified token bytes to tensors on the device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llmctl.errors import ConfigError
from llmctl.storage.corpus.loader import SampleLoader, StepBatch
from llmctl.storage.corpus.mixture import open_order
from llmctl.storage.corpus.order import SampleRef
from llmctl.storage.corpus.reader import Reader, open_reader
from llmctl.storage.corpus.tokenizer import BYTES
from llmctl.storage.files import open_store
from llmctl.storage.hashing import verify
from llmctl.wire import environment
from llmctl.wire.layout import HostLayout
from llmctl.wire.manifests import ShardManifest
from llmctl.wire.parallel import share
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.specs import NodeSpec
from llmctl.worker.step import Batch

_DTYPES = {"uint16": torch.uint16, "uint32": torch.uint32}


def open_corpus(spec: NodeSpec) -> Reader:
    """The job's corpus or mixture, with remote shards copied to this host's cache folder.

    Raises:
        ConfigError: the job names no data, or corpora that can't be mixed.
        NotFoundError, IntegrityError: there is none at that place.
    """
    if not spec.corpora:
        raise ConfigError(
            "the job names no data", hint="set data.uri to what `llmctl data shard` made", stage="data"
        )
    cache = os.environ.get(environment.CACHE_DIR) or HostLayout(spec.workdir).cache
    return open_reader([source.uri for source in spec.corpora], Path(cache), spec.cache_bytes)


def tokenizer_files(spec: NodeSpec, manifest: ShardManifest) -> dict[str, bytes]:
    """The tokenizer's own file by name, to lie in every checkpoint; none for bytes."""
    if manifest.tokenizer == BYTES or manifest.tokenizer_file is None or not spec.corpora:
        return {}
    store = open_store(spec.corpora[0].uri)
    verify(store, manifest.tokenizer_file)
    return {manifest.tokenizer_file.path: store.read_bytes(manifest.tokenizer_file.path)}


class Batches:
    """A data rank's share of each step, from `start_step` on; `weights` are the corpora's."""

    def __init__(
        self,
        reader: Reader,
        recipe: RecipeSpec,
        device: torch.device,
        rank: int,
        ranks: int,
        *,
        weights: Sequence[float],
        start_step: int,
    ) -> None:
        self._dtype = _DTYPES[reader.manifest.dtype]
        self._row = recipe.sequence_length + 1
        self._device = device
        self._first = share(recipe.global_batch, rank, ranks, recipe.shares)[0]
        self._global_batch = recipe.global_batch
        self._dropout = recipe.dropout > 0
        self._order = open_order(reader.manifests, weights, recipe.sequence_length, recipe.seed)
        self._loader = SampleLoader(
            reader,
            self._order,
            global_batch=recipe.global_batch,
            rank=rank,
            world=ranks,
            start_step=start_step,
            shares=recipe.shares,
        )

    @property
    def taken(self) -> StepBatch:
        """What the last batch was made of, as the loader handed it out."""
        return self._taken

    @property
    def wait_s(self) -> float:
        """Seconds that the last batch made the step wait."""
        return self._loader.wait_s

    def __iter__(self) -> Iterator[Batch]:
        for step_batch in self._loader:
            self._taken = step_batch
            batch = to_batch(step_batch.tokens, self._dtype, self._row, self._device)
            yield replace(batch, samples=self._positions(step_batch)) if self._dropout else batch

    def _positions(self, batch: StepBatch) -> torch.Tensor:
        """Where the samples lie in the stream of all samples: what their dropout masks are drawn from."""
        first = batch.step * self._global_batch + self._first
        return torch.arange(first, first + len(batch.refs))

    def samples_of(self, step: int) -> list[SampleRef]:
        """All samples of step `step` (counted from 1), of all ranks."""
        return self._order.samples(step - 1, self._global_batch, 0, self._global_batch)

    def close(self) -> None:
        """Stop reading ahead."""
        self._loader.close()


def to_batch(tokens: bytearray, dtype: torch.dtype, row: int, device: torch.device) -> Batch:
    """Raw rows of `row` tokens as inputs and the targets one to the right, each [samples, row - 1]."""
    # frombuffer refuses an empty buffer, which a rank without samples has.
    flat = torch.frombuffer(tokens, dtype=dtype) if tokens else torch.empty(0, dtype=dtype)
    ids = flat.to(torch.int64).view(-1, row)
    if device.type == "cuda":
        ids = ids.pin_memory().to(device, non_blocking=True)
    return Batch(inputs=ids[:, :-1], targets=ids[:, 1:])
