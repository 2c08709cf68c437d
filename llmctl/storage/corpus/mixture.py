"""Several corpora as one stream, each with a fixed share of the samples: arithmetic, like the order of one.

The stream is cut into blocks. The number of samples that corpus c has had before a border at n samples is
floor(S_c n) - floor(S_(c-1) n), where S_c is the sum of the shares up to c: a closed formula, less than one
sample away from its share at every border, and no step is ever replayed. Inside a block a keyed permutation
says whose turn it is. Each corpus is read in its own order, epoch after epoch, however large it is.

Stable for good, like `order`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

from llmctl.errors import ConfigError
from llmctl.storage.corpus.order import (
    ROUNDS,
    Order,
    SampleOrder,
    SampleRef,
    ShardRef,
    key,
    permute,
    positions,
)
from llmctl.wire.manifests import ShardManifest

MIX_BLOCK = 4096
"""Samples per block; more where a share is so small that its count could otherwise fall from border to
border: with two samples per block for the smallest share it can't."""

SMALLEST_SHARE = Fraction(1, 10**6)


def open_order(
    manifests: Sequence[ShardManifest], weights: Sequence[float], sequence_length: int, seed: int
) -> Order:
    """The order of one corpus, or of a mixture of several.

    Raises:
        ConfigError: a wrong argument, or a corpus without a sample.
    """
    if len(manifests) == 1:
        return SampleOrder(manifests[0], sequence_length, seed)
    return MixtureOrder(manifests, weights, sequence_length, seed)


def check_alike(manifests: Sequence[ShardManifest], names: Sequence[str]) -> None:
    """Refuse corpora whose tokens mean different things.

    Raises:
        ConfigError: naming the first two that differ, and in what.
    """
    for manifest, name in zip(manifests[1:], names[1:], strict=True):
        for what, one, other in zip(_KINDS, _kind(manifests[0]), _kind(manifest), strict=True):
            if one != other:
                raise ConfigError(
                    f"{names[0]} and {name} can't be mixed: {what} {one} and {other}",
                    hint="shard both with the same --tokenizer",
                    stage="data",
                )


_KINDS = ("tokenizer", "dtype", "vocabulary", "end of document")


def _kind(manifest: ShardManifest) -> tuple[str, str, int, int]:
    file = manifest.tokenizer_file
    tokenizer = f"{manifest.tokenizer} ({file.sha256[:12]})" if file else manifest.tokenizer
    return tokenizer, manifest.dtype, manifest.vocab_size, manifest.eos


class MixtureOrder:
    """The order of a mixture; same protocol as that of one corpus.

    Args:
        weights: shares of the samples, normalised here; read as decimal numbers, so 0.1 is a tenth.

    Raises:
        ConfigError: a weight that is not positive or far too small, or a corpus without a sample.
    """

    def __init__(
        self, manifests: Sequence[ShardManifest], weights: Sequence[float], sequence_length: int, seed: int
    ) -> None:
        shares = _shares(weights)
        if len(shares) != len(manifests):
            raise ConfigError(f"{len(manifests)} corpora, but {len(shares)} weights")
        self.sequence_length = sequence_length
        self.seed = seed
        self.block = _block_size(min(shares))
        self._sums = tuple(accumulate(shares))
        self._orders = [
            SampleOrder(manifest, sequence_length, key(seed, "corpus", number))
            for number, manifest in enumerate(manifests)
        ]
        self._blocks: dict[int, _MixBlock] = {}

    def sample(self, position: int) -> SampleRef:
        number, offset = divmod(position, self.block)
        corpus, place = self._block(number).turn(offset)
        ref = self._orders[corpus].sample(place)
        return SampleRef(ref.shard, ref.start, corpus)

    def samples(self, step: int, global_batch: int, first: int, count: int) -> list[SampleRef]:
        return [self.sample(position) for position in positions(step, global_batch, first, count)]

    def shards_from(self, position: int) -> list[ShardRef]:
        """Shards of every corpus from this block's begin on, then those from its end on."""
        number = position // self.block
        borders = (self.taken(number * self.block), self.taken((number + 1) * self.block))
        found = [
            ShardRef(ref.shard, corpus)
            for taken in borders
            for corpus, place in enumerate(taken)
            for ref in self._orders[corpus].shards_from(place)
        ]
        return list(dict.fromkeys(found))

    def taken(self, border: int) -> tuple[int, ...]:
        """How many samples each corpus has had before `border`, a multiple of `block`."""
        ends = [0, *(int(total * border) for total in self._sums)]
        return tuple(end - start for start, end in pairwise(ends))

    def _block(self, number: int) -> _MixBlock:
        """Made when first asked for; the two last used are enough for a stream."""
        block = self._blocks.get(number)
        if block is None:
            start = self.taken(number * self.block)
            end = self.taken((number + 1) * self.block)
            block = _MixBlock(
                starts=start,
                ends=tuple(accumulate(later - earlier for earlier, later in zip(start, end, strict=True))),
                keys=tuple(key(self.seed, "mix", number, turn) for turn in range(ROUNDS)),
            )
            while len(self._blocks) > 1:
                del self._blocks[max(self._blocks, key=lambda known: abs(known - number))]
            self._blocks[number] = block
        return block


@dataclass(frozen=True, slots=True, kw_only=True)
class _MixBlock:
    """One block: each corpus's samples before it, and the running sums of those in it."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    keys: tuple[int, ...]

    def turn(self, offset: int) -> tuple[int, int]:
        """(corpus, position in that corpus's own stream) at `offset` of the block."""
        index = permute(offset, self.ends[-1], self.keys)
        corpus = bisect_right(self.ends, index)
        return corpus, self.starts[corpus] + index - (self.ends[corpus - 1] if corpus else 0)


def _shares(weights: Sequence[float]) -> list[Fraction]:
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise ConfigError(f"a mixture's weight is {weight}, must be a positive number", stage="data")
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    if min(shares) < SMALLEST_SHARE:
        raise ConfigError(
            f"a mixture's smallest share is {float(min(shares)):.1e} of the samples, below one in a million",
            hint="leave that corpus out, or give it more weight",
            stage="data",
        )
    return shares


def _block_size(smallest: Fraction) -> int:
    """A power of two, for which `permute` never walks."""
    size = MIX_BLOCK
    while smallest * size < 2:
        size *= 2
    return size
