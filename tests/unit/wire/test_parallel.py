"""The arithmetic of meshes and pipelines, which planner and workers must agree on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmctl.wire.model import ModelConfig
from llmctl.wire.parallel import ParallelSpec, coordinates, micro_batches_per_step, rank_at, schedule_fits
from llmctl.wire.stages import block_flops, pipeline_cuts

SIZES = st.integers(1, 4)
SPECS = st.builds(ParallelSpec, pp=SIZES, dp_replicate=SIZES, dp_shard=SIZES, tp=SIZES)


@given(SPECS)
def test_every_rank_has_one_place(spec: ParallelSpec) -> None:
    """Coordinates and ranks are one to one."""
    places = [coordinates(spec, rank) for rank in range(spec.world)]
    assert len(set(places)) == spec.world
    assert [rank_at(spec, place) for place in places] == list(range(spec.world))


def test_tp_peers_are_neighbours() -> None:
    """Ranks of one host are consecutive, so the innermost dimension is the one that stays on a host."""
    spec = ParallelSpec(pp=2, dp_shard=2, tp=2)
    assert [coordinates(spec, rank) for rank in (0, 1)] == [(0, 0, 0, 0), (0, 0, 0, 1)]
    assert coordinates(spec, 4) == (1, 0, 0, 0)


@given(SPECS, st.integers(1, 40), st.integers(1, 8))
def test_the_largest_share_decides_the_passes(spec: ParallelSpec, batch: int, size: int) -> None:
    """Enough micro-batches for every rank, and not one more than the fullest rank needs."""
    count = micro_batches_per_step(spec, batch, size)
    largest = -(-batch // spec.data_ranks)
    assert (count - 1) * size < largest <= count * size


@given(st.integers(2, 4), st.integers(1, 16))
def test_interleaved_needs_rounds_of_one_length(pp: int, count: int) -> None:
    """A multiple of pp always works, and so does any number below twice pp."""
    spec = ParallelSpec(pp=pp, schedule="interleaved", virtual_stages=2)
    if count % pp == 0 or count < 2 * pp:
        assert schedule_fits(spec, count)


@given(layers=st.integers(1, 40), stages=st.integers(1, 8), vocab=st.sampled_from([64, 32_000, 256_000]))
def test_stages_cover_the_model_and_none_is_needlessly_slow(layers: int, stages: int, vocab: int) -> None:
    """Each layer lies in one stage, none is empty, and no other size of the last stage makes it faster."""
    if layers < stages:
        return
    model = ModelConfig(vocab_size=vocab, dim=512, layers=layers, heads=8, kv_heads=4, ffn_dim=1408)
    cuts = pipeline_cuts(model, stages, 1024)
    assert [first for first, _ in cuts[1:]] == [stop for _, stop in cuts[:-1]]
    assert (cuts[0][0], cuts[-1][1]) == (0, layers)
    sizes = [stop - first for first, stop in cuts]
    assert min(sizes) >= 1
    if stages > 1:
        block, head = block_flops(model, 1024), 2 * model.vocab_size * model.dim
        slowest = max(max(sizes[:-1]) * block, sizes[-1] * block + head)
        for last in (sizes[-1] - 1, sizes[-1] + 1):
            if 1 <= last <= layers - stages + 1:
                others = -(-(layers - last) // (stages - 1))
                assert max(others * block, last * block + head) >= slowest


def test_a_name_tells_the_layout() -> None:
    """What `train` prints in its first line."""
    assert ParallelSpec(dp_replicate=4).name == "ddp 4"
    assert ParallelSpec(dp_replicate=2, dp_shard=4, tp=2).name == "hsdp 2x4 x tp 2"
    assert (
        ParallelSpec(pp=2, schedule="interleaved", virtual_stages=2).name == "pp 2 (interleaved, 2 virtual)"
    )
