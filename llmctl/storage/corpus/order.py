"""Which samples make up which step: arithmetic on (manifest, seed, step, global batch), nothing else.

A sample is a window of `sequence_length + 1` tokens that starts at a multiple of `sequence_length` in its
shard; windows never cross shards. Steps take their samples from an endless stream of epochs, so the number
of ranks does not enter: a resize neither skips nor repeats a sample, and an audit can prove it.

Within an epoch the shards are shuffled and taken in blocks of a few; the windows of a block are permuted by
a keyed bijection (a Feistel network with cycle walking). So a cold cache needs only a few shards at a time,
nothing of the size of the corpus is held in memory, and any position costs the same as the first.

Standard library only; stable for good: a checkpoint's position means nothing under another order.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

from llmctl.errors import ConfigError
from llmctl.wire.manifests import ShardManifest

BLOCK_SHARDS = 4
"""Shards whose windows are mixed with one another: what a reader must hold at a time."""

ROUNDS = 6
"""Keys of one permutation."""

_MASK = (1 << 64) - 1


class SampleRef(NamedTuple):
    """One sample: index of the shard in the manifest, the position of its first token there, and in a
    mixture the index of the corpus."""

    shard: int
    start: int
    corpus: int = 0


class ShardRef(NamedTuple):
    """One shard: its index in the manifest, and in a mixture the index of the corpus."""

    shard: int
    corpus: int = 0


class Order(Protocol):
    """An endless stream of samples, any position of it at the same cost.

    Attributes:
        sequence_length: tokens that a sample trains on; it holds one more.
    """

    sequence_length: int

    def sample(self, position: int) -> SampleRef:
        """The sample at `position` of the stream, from 0."""

    def samples(self, step: int, global_batch: int, first: int, count: int) -> list[SampleRef]:
        """Samples `first` to `first + count` of the global batch of `step`, steps counted from 0.

        Raises:
            ConfigError: they don't lie in the batch.
        """

    def shards_from(self, position: int) -> list[ShardRef]:
        """Shards that `position` and what follows need, the first needed first."""


class SampleOrder:
    """The order of all samples of a corpus.

    Args:
        manifest: the corpus; only the shards' token counts matter.
        sequence_length: tokens that a sample trains on; it holds one more.
        seed: another seed, another order.

    Raises:
        ConfigError: a wrong argument, or no shard is long enough for one sample.
    """

    def __init__(self, manifest: ShardManifest, sequence_length: int, seed: int) -> None:
        if sequence_length < 1:
            raise ConfigError(f"sequence_length is {sequence_length}, must be at least 1")
        self.sequence_length = sequence_length
        self.seed = seed
        self._windows = [max(0, shard.tokens - 1) // sequence_length for shard in manifest.shards]
        self.samples_per_epoch = sum(self._windows)
        if self.samples_per_epoch == 0:
            longest = max((shard.tokens for shard in manifest.shards), default=0)
            raise ConfigError(
                f"the corpus has no sample of {sequence_length} + 1 tokens: its longest shard has {longest}",
                hint="use a smaller sequence_length or more text",
            )
        self._epochs: dict[int, _Epoch] = {}

    def sample(self, position: int) -> SampleRef:
        """The sample at `position` of the endless stream, from 0."""
        epoch, offset = divmod(position, self.samples_per_epoch)
        return self._epoch(epoch).sample(offset, self.sequence_length)

    def samples(self, step: int, global_batch: int, first: int, count: int) -> list[SampleRef]:
        """As `Order.samples`."""
        return [self.sample(position) for position in positions(step, global_batch, first, count)]

    def shards_from(self, position: int) -> list[ShardRef]:
        """Shards that `position` and what follows need: those of its block, then those of the next."""
        return [ShardRef(shard) for shard in self._shards_from(position)]

    def _shards_from(self, position: int) -> list[int]:
        epoch, offset = divmod(position, self.samples_per_epoch)
        here = self._epoch(epoch)
        block = here.block_of(offset)
        if block + 1 < len(here.blocks):
            return [*here.blocks[block].shards, *here.blocks[block + 1].shards]
        return [*here.blocks[block].shards, *self._epoch(epoch + 1).blocks[0].shards]

    def _epoch(self, number: int) -> _Epoch:
        """Made when first asked for; the two last used are enough for a stream."""
        epoch = self._epochs.get(number)
        if epoch is None:
            epoch = _make_epoch(self._windows, self.seed, number)
            while len(self._epochs) > 1:
                del self._epochs[max(self._epochs, key=lambda known: abs(known - number))]
            self._epochs[number] = epoch
        return epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """A few shards; `ends` are the running sums of their windows, `keys` those of the permutation."""

    shards: tuple[int, ...]
    ends: tuple[int, ...]
    keys: tuple[int, ...]

    def sample(self, offset: int, sequence_length: int) -> SampleRef:
        index = permute(offset, self.ends[-1], self.keys)
        place = bisect_right(self.ends, index)
        window = index - (self.ends[place - 1] if place else 0)
        return SampleRef(self.shards[place], window * sequence_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    """The blocks of one epoch; `ends` are the running sums of their samples."""

    blocks: tuple[_Block, ...]
    ends: tuple[int, ...]

    def block_of(self, offset: int) -> int:
        return bisect_right(self.ends, offset)

    def sample(self, offset: int, sequence_length: int) -> SampleRef:
        block = self.block_of(offset)
        return self.blocks[block].sample(offset - (self.ends[block - 1] if block else 0), sequence_length)


def _make_epoch(windows: Sequence[int], seed: int, number: int) -> _Epoch:
    shards = [shard for shard, count in enumerate(windows) if count]
    shards.sort(key=lambda shard: key(seed, number, "shard", shard))
    blocks = [
        _Block(
            shards=tuple(group),
            ends=tuple(accumulate(windows[shard] for shard in group)),
            keys=tuple(key(seed, number, "round", start, turn) for turn in range(ROUNDS)),
        )
        for start in range(0, len(shards), BLOCK_SHARDS)
        for group in [shards[start : start + BLOCK_SHARDS]]
    ]
    return _Epoch(blocks=tuple(blocks), ends=tuple(accumulate(block.ends[-1] for block in blocks)))


def positions(step: int, global_batch: int, first: int, count: int) -> range:
    """Places in the stream of samples `first` to `first + count` of the global batch of `step`.

    Raises:
        ConfigError: they don't lie in the batch.
    """
    if step < 0 or first < 0 or count < 0 or first + count > global_batch:
        raise ConfigError(f"step {step}: no samples {first} to {first + count} in a batch of {global_batch}")
    start = step * global_batch + first
    return range(start, start + count)


def permute(index: int, size: int, keys: Sequence[int]) -> int:
    """A bijection of range(size), chosen by `keys` (an even number of them)."""
    bits = max(2, (size - 1).bit_length())
    low = bits // 2
    low_mask, high_mask = (1 << low) - 1, (1 << (bits - low)) - 1
    # The network permutes a power of two below 2 * size; a result outside is walked on until it is inside.
    while True:
        high, bottom = index >> low, index & low_mask
        for turn in range(0, len(keys), 2):
            high ^= _mix(bottom, keys[turn]) & high_mask
            bottom ^= _mix(high, keys[turn + 1]) & low_mask
        index = (high << low) | bottom
        if index < size:
            return index


def _mix(value: int, key: int) -> int:
    """A good 64-bit hash of (value, key): the finaliser of splitmix64."""
    z = (value * 0x9E3779B97F4A7C15 + key) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def key(*parts: int | str) -> int:
    """64 bits from a hash: the same on every machine and Python, unlike `random` or `hash`."""
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
