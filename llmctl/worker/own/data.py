"""Samples of your own, in an order that is a function of (seed, step) alone, whatever the number of ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llmctl.errors import ConfigError
from llmctl.storage.corpus.loader import StepBatch
from llmctl.storage.corpus.order import ROUNDS, SampleRef, key, permute
from llmctl.storage.corpus.tarset import TarSample, TarSet
from llmctl.wire import environment
from llmctl.wire.layout import HostLayout
from llmctl.wire.parallel import share
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.job import Job
from llmctl.worker.step import Batch

Pair = tuple[Tensor, Tensor]
"""Input and target of one sample; every sample's have the same shapes, so pad them."""


class Samples(Protocol):
    """Samples by number, such as a map-style torch Dataset or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


class TarSamples:
    """A tar data set of `llmctl data shard --format tar`, decoded once and held in memory.

    Args:
        uri: where it lies; None: the job's `data.uri`. A remote one is copied, verified, to the host's cache.
        decode: makes (input, target) of one sample's files (bytes by extension).

    Raises:
        ConfigError, NotFoundError, IntegrityError: no such data set.
    """

    def __init__(self, job: Job, decode: Callable[[TarSample], Pair], uri: str | None = None) -> None:
        place = uri or job.spec.data_uri
        if place is None:
            raise ConfigError("the job names no data", hint="set data.uri", stage="data")
        cache = os.environ.get(environment.CACHE_DIR) or HostLayout(job.spec.workdir).cache
        tars = TarSet(place, Path(cache), job.spec.cache_bytes)
        self._pairs = [decode(sample) for sample in tars.samples()]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int, /) -> Pair:
        return self._pairs[index]


class OwnBatches:
    """See trainer.Source: epochs without end, each in another order; every sample once per epoch."""

    def __init__(
        self, samples: Samples, recipe: RecipeSpec, device: torch.device, rank: int, ranks: int, step: int
    ) -> None:
        self.wait_s = 0.0
        self._samples = samples
        self._seed, self._global_batch = recipe.seed, recipe.global_batch
        self._device = device
        self._first, self._count = share(recipe.global_batch, rank, ranks, recipe.shares)
        self._step = step

    @property
    def taken(self) -> StepBatch:
        """No journal is kept of samples of your own."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.monotonic()
            first = self._step * self._global_batch + self._first
            batch = self._batch([self._number(place) for place in range(first, first + self._count)])
            self._step += 1
            self.wait_s = time.monotonic() - began
            yield batch

    def samples_of(self, step: int) -> list[SampleRef]:
        """See Source; `shard` is 0, `start` the sample's number."""
        first = (step - 1) * self._global_batch
        return [SampleRef(0, self._number(place)) for place in range(first, first + self._global_batch)]

    def close(self) -> None:
        """Nothing is read ahead."""

    def _number(self, place: int) -> int:
        """Which sample is at `place` of the endless stream."""
        epoch, position = divmod(place, len(self._samples))
        keys = [key(self._seed, epoch, "own", turn) for turn in range(ROUNDS)]
        return permute(position, len(self._samples), keys)

    def _batch(self, numbers: list[int]) -> Batch:
        # One at least, so that a rank without samples knows their shapes.
        pairs = [self._samples[number] for number in numbers or [0]]
        inputs, targets = (torch.stack(list(part))[: len(numbers)] for part in zip(*pairs, strict=True))
        return Batch(inputs=inputs.to(self._device), targets=targets.to(self._device))
