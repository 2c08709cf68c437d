"""Every layout trains the same model: one process's loss curve, and any checkpoint fits any of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmctl.wire.parallel import ParallelSpec
from tests.engine_kit import add, engine_of, run_all
from tests.hf_kit import ours, tokens
from tests.layout_kit import Case, Result, World, case, run_worlds
from tests.worker_kit import make_corpus

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1800)]

EXACT, TENSOR = 1e-5, 5e-5
"""Largest difference in any of twenty losses: without and with tensor parallelism (other order of sums)."""

TWO = [
    ParallelSpec(dp_replicate=2),
    ParallelSpec(dp_shard=2),
    ParallelSpec(tp=2),
    ParallelSpec(tp=2, sequence_parallel=False),
    ParallelSpec(tp=2, loss_parallel=False),
    ParallelSpec(pp=2),
    ParallelSpec(pp=2, schedule="gpipe"),
    ParallelSpec(pp=2, schedule="interleaved", virtual_stages=2),
]
THREE = [ParallelSpec(dp_replicate=3), ParallelSpec(dp_shard=3)]
FOUR = [
    ParallelSpec(dp_shard=4),
    ParallelSpec(dp_replicate=2, dp_shard=2),
    ParallelSpec(dp_replicate=2, tp=2),
    ParallelSpec(dp_shard=2, tp=2),
    ParallelSpec(dp_shard=2, tp=2, sequence_parallel=False),
    ParallelSpec(pp=2, dp_replicate=2),
    ParallelSpec(pp=2, dp_shard=2),
    ParallelSpec(pp=2, dp_shard=2, schedule="interleaved", virtual_stages=2),
    ParallelSpec(pp=2, tp=2),
    ParallelSpec(pp=4),
]
EIGHT = [
    ParallelSpec(pp=2, dp_shard=2, tp=2),
    ParallelSpec(dp_replicate=2, dp_shard=2, tp=2),
    ParallelSpec(pp=2, dp_replicate=2, dp_shard=2),
    ParallelSpec(pp=2, dp_replicate=2, tp=2),
]


def label(spec: ParallelSpec) -> str:
    off = [name for name in ("sequence_parallel", "loss_parallel") if not getattr(spec, name)]
    return " without ".join([spec.name, *off])


WIDER = [ParallelSpec(dp_shard=3), ParallelSpec(dp_shard=2, tp=2)]
"""Takers of three and four ranks; three divide no dimension of the model."""
RESUMED = [ParallelSpec(dp_shard=2), ParallelSpec(tp=2), ParallelSpec(pp=2), ParallelSpec(dp_replicate=2)]


def givers() -> list[str]:
    """Layouts whose checkpoints differ in form: whole, by rows, by columns, by stage, and by two at once."""
    specs = [TWO[1], TWO[2], TWO[5], TWO[7], FOUR[1], FOUR[3], FOUR[6], FOUR[8]]
    return ["alone", *map(label, specs)]


def few_givers() -> list[str]:
    """Whole, by rows, and by stage and columns."""
    return ["alone", label(TWO[1]), label(FOUR[8])]


def resumed(base: Path) -> list[World]:
    """Every giver's checkpoint of step 10 resumed by several others."""

    def taken(giver: str, name: str, taker: ParallelSpec) -> Case:
        step_10 = base / "checkpoints" / giver / "step-00000010"
        return case(base, f"{giver} -> {name}", taker, resume=step_10)

    one = [taken(giver, "one", ParallelSpec()) for giver in givers()]
    two = [taken(giver, label(taker), taker) for giver in givers() for taker in RESUMED]
    more = [(taker.world, [taken(giver, label(taker), taker) for giver in few_givers()]) for taker in WIDER]
    return [(1, one), (2, two), *more]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def trained(base: Path) -> dict[str, Result]:
    """Twenty steps of one process and of every layout, with a checkpoint of step 10; and the resumed ones."""
    worlds: list[World] = [(1, [case(base, "alone", ParallelSpec(), checkpoint_every=10)])]
    for specs in (TWO, THREE, FOUR, EIGHT):
        cases = [case(base, label(spec), spec, checkpoint_every=10) for spec in specs]
        worlds.append((specs[0].world, cases))
    return run_worlds(base, make_corpus(base / "corpus"), [*worlds, *resumed(base)])


@pytest.fixture(scope="module")
def alone(trained: dict[str, Result]) -> Result:
    return trained["alone"]


@pytest.mark.parametrize("spec", [*TWO, *THREE, *FOUR, *EIGHT], ids=label)
def test_a_layout_trains_as_one_process(
    spec: ParallelSpec, trained: dict[str, Result], alone: Result
) -> None:
    """Up to three dimensions at once: losses within the gate, and gradient norms, which see a part counted
    twice, within a ten-thousandth."""
    result, gate = trained[label(spec)], TENSOR if spec.tp > 1 else EXACT
    assert result.error == ""
    assert len(result.losses) == 20
    gaps = [abs(a - b) for a, b in zip(alone.losses, result.losses, strict=True)]
    assert max(gaps) < gate
    assert result.norms == pytest.approx(alone.norms, rel=1e-4)


def test_one_process_learns(alone: Result) -> None:
    """The curve that all others are held against is one of learning, clipped steps included."""
    assert alone.losses[0] - alone.losses[-1] > 1
    assert max(alone.norms) > 1


@pytest.mark.parametrize("spec", TWO, ids=label)
def test_every_sample_is_journaled_once(spec: ParallelSpec, trained: dict[str, Result]) -> None:
    """Ranks that work on the same samples keep one journal, or an audit would count them twice."""
    wanted = {f"consumed-{rank}.jsonl" for rank in range(spec.data_ranks)}
    assert set(trained[label(spec)].journals) == wanted


@pytest.mark.parametrize("giver", givers())
def test_a_checkpoint_fits_every_layout(giver: str, trained: dict[str, Result]) -> None:
    """Weights and moments are bit by bit those that were saved, whichever layout saved and loads them."""
    whole = trained[f"{giver} -> one"].digests
    assert len(whole) > 30
    for taker in RESUMED:
        assert trained[f"{giver} -> {label(taker)}"].digests == whole


@pytest.mark.parametrize("giver", givers())
def test_a_resumed_layout_goes_on_alike(giver: str, trained: dict[str, Result], alone: Result) -> None:
    """From step 11 on, the losses are those of the process that never stopped: same samples, same state."""
    for taker in ("one", *map(label, RESUMED)):
        losses = trained[f"{giver} -> {taker}"].losses
        gaps = [abs(a - b) for a, b in zip(alone.losses[10:], losses, strict=True)]
        assert max(gaps) < TENSOR, taker


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("giver", givers())
def test_a_checkpoint_of_any_layout_can_be_asked(giver: str, base: Path) -> None:
    """The engine of `llmctl infer` reads it whole: it gives a text the chances that the decoder gives it."""
    step_10 = base / "checkpoints" / giver / "step-00000010"
    ids = tokens(length=24)[:1]
    chances = torch.log_softmax(ours(step_10)(ids)[0, :-1], dim=-1)
    wanted = chances.gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1)
    told = run_all(engine_of(step_10), [add("score", ids[0].tolist(), "score")])
    assert torch.allclose(torch.tensor(told["score"].last.scores), wanted, atol=1e-4)


@pytest.mark.parametrize("taker", WIDER, ids=label)
@pytest.mark.parametrize("giver", few_givers())
def test_three_and_four_ranks_go_on_alike(
    giver: str, taker: ParallelSpec, trained: dict[str, Result], alone: Result
) -> None:
    """More ranks than saved it, or shards of unequal size: the same state and losses, too."""
    result = trained[f"{giver} -> {label(taker)}"]
    assert result.digests == trained[f"{giver} -> one"].digests
    gaps = [abs(a - b) for a, b in zip(alone.losses[10:], result.losses, strict=True)]
    assert max(gaps) < TENSOR
