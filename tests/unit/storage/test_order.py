"""The sample order: a bijection per epoch, one stream for any split over ranks, any step at the same cost."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.errors import ConfigError
from llmctl.storage.corpus.order import BLOCK_SHARDS, SampleOrder, SampleRef, permute
from llmctl.wire.manifests import FileEntry, ShardEntry, ShardManifest
from llmctl.wire.parallel import share


def manifest_of(tokens: list[int]) -> ShardManifest:
    """A manifest whose shards have these token counts."""
    shards = tuple(
        ShardEntry(
            name=f"shard-{i:05d}",
            tokens=count,
            documents=1,
            bin=FileEntry(path=f"shard-{i:05d}.bin", size=2 * count, sha256="0" * 64),
            idx=FileEntry(path=f"shard-{i:05d}.idx", size=8, sha256="0" * 64),
        )
        for i, count in enumerate(tokens)
    )
    return ShardManifest(
        dtype="uint16",
        vocab_size=257,
        eos=256,
        tokenizer="bytes",
        tokens=sum(tokens),
        documents=1,
        shards=shards,
    )


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    """Small corpora with shards of very different lengths, some too short for a sample."""
    length = draw(st.integers(1, 40))
    tokens = draw(st.lists(st.integers(0, 900), min_size=1, max_size=15))
    tokens.append(length + 1)
    return SampleOrder(manifest_of(tokens), length, draw(st.integers(0, 2**40)))


def expected_samples(tokens: list[int], length: int) -> set[SampleRef]:
    """By the definition: every window of length + 1 at a multiple of length."""
    return {
        SampleRef(shard, start)
        for shard, count in enumerate(tokens)
        for start in range(0, count, length)
        if start + length + 1 <= count
    }


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=12),
    st.integers(1, 30),
    st.integers(0, 9),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_an_epoch_holds_every_sample_once(tokens: list[int], length: int, epoch: int, seed: int) -> None:
    """One epoch's positions are exactly the windows of the definition, each once."""
    tokens.append(length + 1)
    order = SampleOrder(manifest_of(tokens), length, seed)
    first = epoch * order.samples_per_epoch
    seen = [order.sample(position) for position in range(first, first + order.samples_per_epoch)]
    assert len(seen) == len(set(seen))
    assert set(seen) == expected_samples(tokens, length)


@given(orders(), st.integers(1, 24), st.integers(1, 9), st.integers(1, 9), st.integers(0, 50))
@settings(deadline=None)
def test_the_split_over_ranks_does_not_matter(
    order: SampleOrder, global_batch: int, world: int, other: int, step: int
) -> None:
    """The ranks' shares joined are the same global batch for every world size."""

    def batch(ranks: int) -> list[SampleRef]:
        shares = [share(global_batch, rank, ranks) for rank in range(ranks)]
        return [ref for first, count in shares for ref in order.samples(step, global_batch, first, count)]

    whole = order.samples(step, global_batch, 0, global_batch)
    assert batch(world) == batch(other) == whole


@given(orders(), st.integers(1, 24))
@settings(deadline=None)
def test_steps_follow_one_another_without_gap(order: SampleOrder, global_batch: int) -> None:
    """Steps 0, 1, 2 ... joined are the stream of positions, across the ends of epochs too."""
    steps = 2 * order.samples_per_epoch // global_batch + 2
    joined = [ref for step in range(steps) for ref in order.samples(step, global_batch, 0, global_batch)]
    assert joined == [order.sample(position) for position in range(steps * global_batch)]


@given(st.integers(1, 5000), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(size: int, keys: list[int]) -> None:
    """For every size and any keys, each index is hit once."""
    assert sorted(permute(index, size, keys) for index in range(size)) == list(range(size))


def test_seeds_and_epochs_differ() -> None:
    """Another seed or epoch is another order of the same samples."""
    tokens = [5000] * 10
    streams = set()
    for seed in range(5):
        order = SampleOrder(manifest_of(tokens), 10, seed)
        for epoch in range(5):
            first = epoch * order.samples_per_epoch
            streams.add(tuple(order.sample(position) for position in range(first, first + 200)))
    assert len(streams) == 25


def test_a_late_step_costs_what_an_early_one_does() -> None:
    """Nothing counts up to the step: a step in epoch 10**9 of a huge corpus is there at once."""
    order = SampleOrder(manifest_of([32 << 20] * 2000), 1024, 7)
    step = 10**9 * order.samples_per_epoch // 512
    assert len(set(order.samples(step, 512, 0, 512))) == 512
    assert order.samples(step, 512, 100, 3) == order.samples(step, 512, 0, 512)[100:103]


def test_a_cold_cache_needs_few_shards_at_a_time() -> None:
    """A run of samples as long as a block stays within two blocks, and shards_from names them before."""
    order = SampleOrder(manifest_of([1001] * 40), 10, 3)
    block = BLOCK_SHARDS * 100
    for start in range(0, 3 * order.samples_per_epoch, 777):
        needed = {order.sample(position).shard for position in range(start, start + block)}
        assert needed <= {ref.shard for ref in order.shards_from(start)}
        assert len(needed) <= 2 * BLOCK_SHARDS


def test_neighbours_in_the_stream_are_spread() -> None:
    """Inside a block the order looks shuffled: few neighbours stay neighbours, shards alternate."""
    order = SampleOrder(manifest_of([10_001] * 4), 10, 1)
    refs = [order.sample(position) for position in range(order.samples_per_epoch)]
    pairs = list(itertools.pairwise(refs))
    assert sum(a.shard == b.shard and abs(a.start - b.start) == 10 for a, b in pairs) < len(pairs) // 100
    assert 0.2 < sum(a.shard == b.shard for a, b in pairs) / len(pairs) < 0.3
    quarter = Counter(ref.shard for ref in refs[:1000])
    assert all(200 < count < 300 for count in quarter.values())


def test_the_order_is_this_one_for_good() -> None:
    """Golden values: a checkpoint's position would mean other samples under another order."""
    order = SampleOrder(manifest_of([1000, 2000, 500, 50, 3000, 1]), 16, 42)
    assert order.samples_per_epoch == 62 + 124 + 31 + 3 + 187
    first = [(4, 1408), (0, 432), (4, 2576), (2, 208), (2, 256), (0, 896)]
    later = [(4, 272), (1, 432), (1, 0)]
    assert order.samples(0, 6, 0, 6) == [SampleRef(*pair) for pair in first]
    assert order.samples(1000, 6, 0, 3) == [SampleRef(*pair) for pair in later]


def test_a_corpus_without_a_sample_is_refused() -> None:
    """Too little text for one sample is an error that says how long the longest shard is."""
    with pytest.raises(ConfigError, match="longest shard has 256"):
        SampleOrder(manifest_of([256, 12]), 256, 0)
    with pytest.raises(ConfigError, match="sequence_length"):
        SampleOrder(manifest_of([256]), 0, 0)


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (7, 2), (0, 9), (0, -1)])
def test_samples_outside_the_batch_are_refused(first: int, count: int) -> None:
    """Asking for more than the global batch has is an error, not the next step's samples."""
    with pytest.raises(ConfigError):
        SampleOrder(manifest_of([999]), 10, 0).samples(3, 8, first, count)
