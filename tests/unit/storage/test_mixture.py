"""The order of a mixture: fixed shares, each corpus's own order, any position at the same cost."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.errors import ConfigError
from llmctl.storage.corpus.mixture import MIX_BLOCK, MixtureOrder, check_alike, open_order
from llmctl.storage.corpus.order import SampleOrder, SampleRef
from llmctl.wire.parallel import share
from tests.unit.storage.test_order import expected_samples, manifest_of

LENGTH = 8

weights_of = st.lists(
    st.one_of(st.integers(1, 99), st.floats(0.01, 1.0).map(lambda value: round(value, 4))),
    min_size=2,
    max_size=6,
)


def mixture(weights: list[float], seed: int = 0, tokens: int = 900) -> MixtureOrder:
    """Corpora of one, two, three ... shards under these weights."""
    manifests = [manifest_of([tokens + 7 * i] * (i + 1)) for i in range(len(weights))]
    return MixtureOrder(manifests, weights, LENGTH, seed)


@given(weights_of, st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_shares_are_met_at_every_border(weights: list[float], number: int) -> None:
    """Before any block border each corpus has had its share of the samples, give or take less than one."""
    order = mixture(weights)
    exact = [Fraction(str(weight)) for weight in weights]
    for at in (number, number + 1):
        border = at * order.block
        taken = order.taken(border)
        assert sum(taken) == border
        for count, weight in zip(taken, exact, strict=True):
            assert abs(count - weight / sum(exact) * border) < 1
    now, later = order.taken(number * order.block), order.taken((number + 1) * order.block)
    assert all(a < b for a, b in zip(now, later, strict=True))


@given(weights_of, st.integers(0, 99), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_block_takes_the_next_samples_of_each_corpus(weights: list[float], seed: int, number: int) -> None:
    """A block's samples of a corpus are exactly that corpus's next ones, none left out, none twice."""
    order = mixture(weights, seed)
    start = number * order.block
    seen = [order.sample(position) for position in range(start, start + order.block)]
    for corpus in range(len(weights)):
        first, last = order.taken(start)[corpus], order.taken(start + order.block)[corpus]
        own = order._orders[corpus]
        expected = Counter(own.sample(place)._replace(corpus=corpus) for place in range(first, last))
        assert Counter(ref for ref in seen if ref.corpus == corpus) == expected


def test_each_corpus_is_used_exactly_once_per_epoch() -> None:
    """Over a prefix in which a corpus has gone through whole epochs, each of its samples came as often."""
    order = mixture([3, 1])
    counts = Counter(order.sample(position) for position in range(order.block))
    taken = order.taken(order.block)
    for corpus, tokens in enumerate([[900], [907, 907]]):
        every = {ref._replace(corpus=corpus) for ref in expected_samples(tokens, LENGTH)}
        epochs, rest = divmod(taken[corpus], len(every))
        assert {ref for ref in counts if ref.corpus == corpus} == every
        assert Counter(counts[ref] for ref in every) == Counter({epochs: len(every) - rest, epochs + 1: rest})


@given(st.integers(1, 24), st.integers(1, 9), st.integers(0, 10**7))
@settings(deadline=None)
def test_the_split_over_ranks_does_not_matter(global_batch: int, world: int, step: int) -> None:
    """The ranks' shares joined are the positions of the step, for any number of ranks."""
    order = mixture([0.7, 0.2, 0.1])
    shares = [share(global_batch, rank, world) for rank in range(world)]
    joined = [ref for first, count in shares for ref in order.samples(step, global_batch, first, count)]
    start = step * global_batch
    assert joined == [order.sample(position) for position in range(start, start + global_batch)]


def test_a_late_step_costs_what_an_early_one_does() -> None:
    """Nothing counts up to the step: far positions are there at once, and the same each time."""
    manifests = [manifest_of([32 << 20] * 1000), manifest_of([32 << 20] * 50)]
    order = MixtureOrder(manifests, [0.9, 0.1], 1024, 1)
    late = order.samples(10**12, 512, 0, 512)
    assert len(set(late)) == 512
    order.samples(5, 512, 0, 512)
    assert order.samples(10**12, 512, 100, 3) == late[100:103]


def test_turns_are_spread_inside_a_block() -> None:
    """Each sixteenth of a block already has about the shares: no corpus comes in one run."""
    order = mixture([1, 1])
    part = MIX_BLOCK // 16
    for start in range(0, MIX_BLOCK, part):
        first = sum(order.sample(position).corpus == 0 for position in range(start, start + part))
        assert 0.3 * part < first < 0.7 * part


def test_a_tiny_share_makes_the_blocks_larger() -> None:
    """One sample in a hundred thousand still comes in every block, and its count never falls."""
    order = mixture([99_999, 1])
    assert order.block > MIX_BLOCK
    counts = [order.taken(number * order.block)[1] for number in range(50)]
    assert all(a < b for a, b in pairwise(counts))


def test_shards_from_names_what_the_block_needs() -> None:
    """Every shard that the rest of a block reads is named before, of each corpus."""
    manifests = [manifest_of([80_001] * 40), manifest_of([80_001] * 9)]
    order = MixtureOrder(manifests, [0.8, 0.2], LENGTH, 5)
    for start in range(0, 20 * order.block, 7777):
        end = (start // order.block + 1) * order.block
        needed = {(ref.shard, ref.corpus) for ref in map(order.sample, range(start, end))}
        assert needed <= set(order.shards_from(start))


def test_the_mixture_is_this_one_for_good() -> None:
    """Golden values: a checkpoint's position would mean other samples under another mixture."""
    order = mixture([0.7, 0.2, 0.1], seed=42)
    first = [(0, 808, 0), (0, 72, 0), (0, 752, 0), (0, 384, 0)]
    assert order.samples(0, 4, 0, 4) == [SampleRef(*ref) for ref in first]
    later = [(0, 320, 0), (0, 304, 0)]
    assert order.samples(10**6, 4, 0, 2) == [SampleRef(*ref) for ref in later]


def test_a_mixture_of_one_is_that_corpus() -> None:
    """One corpus under any weight keeps the order that it has alone."""
    manifest = manifest_of([999, 500])
    order = open_order([manifest], [0.3], LENGTH, 7)
    assert order.samples(3, 8, 0, 8) == SampleOrder(manifest, LENGTH, 7).samples(3, 8, 0, 8)


@pytest.mark.parametrize("weights", [[1, 0], [1, -2], [1, float("nan")], [1, float("inf")], [1e9, 1]])
def test_weights_without_a_meaning_are_refused(weights: list[float]) -> None:
    """Zero, negative, infinite or vanishing weights are errors, not a corpus that silently never comes."""
    with pytest.raises(ConfigError, match="mixture"):
        mixture(weights)


def test_corpora_with_other_tokens_are_refused() -> None:
    """Another dtype or vocabulary: the error names both places and the difference."""
    one = manifest_of([999])
    other = type(one)(**{**{f: getattr(one, f) for f in one.__dataclass_fields__}, "vocab_size": 300})
    with pytest.raises(ConfigError, match=r"a and b can't be mixed: vocabulary 257 and 300"):
        check_alike([one, other], ["a", "b"])
    check_alike([one, one], ["a", "b"])
