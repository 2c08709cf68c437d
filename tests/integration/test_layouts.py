"""Every layout trains the same model: one process's loss curve, and any checkpoint fits any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.wire.parallel import ParallelSpec
from tests.layout_kit import Case, Result, case, run_cases
from tests.worker_kit import make_corpus

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1000)]

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
FOUR = [
    ParallelSpec(dp_shard=4),
    ParallelSpec(dp_replicate=2, dp_shard=2),
    ParallelSpec(dp_replicate=2, tp=2),
    ParallelSpec(dp_shard=2, tp=2),
    ParallelSpec(dp_shard=2, tp=2, sequence_parallel=False),
    ParallelSpec(pp=2, dp_replicate=2),
    ParallelSpec(pp=2, dp_shard=2),
    ParallelSpec(pp=2, tp=2),
    ParallelSpec(pp=4),
]
EIGHT = [ParallelSpec(pp=2, dp_shard=2, tp=2), ParallelSpec(dp_replicate=2, dp_shard=2, tp=2)]


def label(spec: ParallelSpec) -> str:
    off = [name for name in ("sequence_parallel", "loss_parallel") if not getattr(spec, name)]
    return " without ".join([spec.name, *off])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def corpus(base: Path) -> Path:
    return make_corpus(base / "corpus")


@pytest.fixture(scope="module")
def alone(base: Path, corpus: Path) -> Result:
    """Twenty steps of one process, with its checkpoint of step 10."""
    only = case(base, "alone", ParallelSpec(), checkpoint_every=10)
    return run_cases(base / "one", corpus, 1, [only])["alone"]


def curves(base: Path, corpus: Path, specs: list[ParallelSpec]) -> dict[str, Result]:
    ranks = specs[0].world
    cases = [case(base, label(spec), spec, checkpoint_every=10) for spec in specs]
    return run_cases(base / f"{ranks}", corpus, ranks, cases)


@pytest.fixture(scope="module")
def two(base: Path, corpus: Path) -> dict[str, Result]:
    return curves(base, corpus, TWO)


@pytest.fixture(scope="module")
def four(base: Path, corpus: Path) -> dict[str, Result]:
    return curves(base, corpus, FOUR)


@pytest.fixture(scope="module")
def eight(base: Path, corpus: Path) -> dict[str, Result]:
    return curves(base, corpus, EIGHT)


def check_curve(spec: ParallelSpec, found: dict[str, Result], alone: Result) -> None:
    """Losses within the gate; gradient norms, which see a part counted twice, within a ten-thousandth."""
    result, gate = found[label(spec)], TENSOR if spec.tp > 1 else EXACT
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
def test_two_ranks_train_as_one(spec: ParallelSpec, two: dict[str, Result], alone: Result) -> None:
    """Two ranks in any layout have the losses and gradient norms of one process."""
    check_curve(spec, two, alone)


@pytest.mark.parametrize("spec", TWO, ids=label)
def test_every_sample_is_journaled_once(spec: ParallelSpec, two: dict[str, Result]) -> None:
    """Ranks that work on the same samples keep one journal, or an audit would count them twice."""
    wanted = {f"consumed-{rank}.jsonl" for rank in range(spec.data_ranks)}
    assert set(two[label(spec)].journals) == wanted


@pytest.mark.parametrize("spec", FOUR, ids=label)
def test_four_ranks_train_as_one(spec: ParallelSpec, four: dict[str, Result], alone: Result) -> None:
    """Products of two dimensions have the losses and gradient norms of one process."""
    check_curve(spec, four, alone)


@pytest.mark.parametrize("spec", EIGHT, ids=label)
def test_eight_ranks_train_as_one(spec: ParallelSpec, eight: dict[str, Result], alone: Result) -> None:
    """Products of three dimensions have the losses and gradient norms of one process."""
    check_curve(spec, eight, alone)


RESUMED = [ParallelSpec(dp_shard=2), ParallelSpec(tp=2), ParallelSpec(pp=2), ParallelSpec(dp_replicate=2)]


def from_step_10(base: Path, giver: str) -> Path:
    return base / "checkpoints" / giver / "step-00000010"


@pytest.fixture(scope="module")
def resumed(
    base: Path, corpus: Path, alone: Result, two: dict[str, Result], four: dict[str, Result]
) -> dict[str, Result]:
    """Every layout's checkpoint of step 10 resumed by several others."""
    cases: dict[int, list[Case]] = {1: [], 2: []}
    for giver in givers():
        step_10 = from_step_10(base, giver)
        cases[1].append(case(base, f"{giver} -> one", ParallelSpec(), resume=step_10))
        for taker in RESUMED:
            cases[2].append(case(base, f"{giver} -> {label(taker)}", taker, resume=step_10))
    found: dict[str, Result] = {}
    for ranks, those in cases.items():
        found |= run_cases(base / f"resumed{ranks}", corpus, ranks, those)
    return found


def givers() -> list[str]:
    """Layouts whose checkpoints differ in form: whole, by rows, by columns, by stage, and by two at once."""
    specs = [TWO[1], TWO[2], TWO[5], TWO[7], FOUR[1], FOUR[3], FOUR[6], FOUR[7]]
    return ["alone", *map(label, specs)]


@pytest.mark.parametrize("giver", givers())
def test_a_checkpoint_fits_every_layout(giver: str, resumed: dict[str, Result]) -> None:
    """Weights and moments are bit by bit those that were saved, whichever layout saved and loads them."""
    whole = resumed[f"{giver} -> one"].digests
    assert len(whole) > 30
    for taker in RESUMED:
        assert resumed[f"{giver} -> {label(taker)}"].digests == whole


@pytest.mark.parametrize("giver", givers())
def test_a_resumed_layout_goes_on_alike(giver: str, resumed: dict[str, Result], alone: Result) -> None:
    """From step 11 on, the losses are those of the process that never stopped: same samples, same state."""
    for taker in ("one", *map(label, RESUMED)):
        losses = resumed[f"{giver} -> {taker}"].losses
        gaps = [abs(a - b) for a, b in zip(alone.losses[10:], losses, strict=True)]
        assert max(gaps) < TENSOR, taker
