"""Weighting, dropout masks and bad losses: the parts of a step that no layout may change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from llmctl.errors import ConfigError, DivergedError
from llmctl.storage.corpus.order import SampleRef
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.badloss import MAX_SKIPS, WARM_UP, BadLoss
from llmctl.worker.model.dropout import Noise
from llmctl.worker.objective import IGNORE, Objective
from llmctl.worker.step import StepNumbers


def example() -> tuple[Tensor, Tensor]:
    """Three samples with four, two and no targets that count."""
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 9, (3, 4), generator=torch.Generator().manual_seed(1))
    targets[1, 2:] = IGNORE
    targets[2] = IGNORE
    return logits, targets


def means(logits: Tensor, targets: Tensor) -> list[float]:
    """Each sample's own mean loss, written out."""
    found = []
    for rows, wanted in zip(logits.log_softmax(-1), targets, strict=True):
        losses = [-float(row[int(t)]) for row, t in zip(rows, wanted, strict=True) if t != IGNORE]
        if losses:
            found.append(sum(losses) / len(losses))
    return found


def value(aggregation: str, pieces: Sequence[slice]) -> float:
    """Loss sum over weight, with the samples cut into pieces."""
    logits, targets = example()
    objective = Objective(aggregation)
    weight, tokens = objective.begin(targets)
    assert int(tokens) == 6
    return sum(float(objective(logits[piece], targets[piece])) for piece in pieces) / float(weight)


WHOLE, ONE_BY_ONE = [slice(0, 3)], [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("pieces", [WHOLE, ONE_BY_ONE])
def test_each_aggregation_is_the_mean_that_it_says(pieces: list[slice]) -> None:
    """tokens: 4 + 2 of them; samples: two that count; mean: one rank's, the same as tokens. In any pieces."""
    first, second = means(*example())
    assert value("tokens", pieces) == pytest.approx((4 * first + 2 * second) / 6, rel=1e-6)
    assert value("samples", pieces) == pytest.approx((first + second) / 2, rel=1e-6)
    assert value("mean", pieces) == pytest.approx((4 * first + 2 * second) / 6, rel=1e-6)


def test_an_unknown_aggregation_is_refused() -> None:
    """A typo is not the default."""
    with pytest.raises(ConfigError, match="is not one of tokens"):
        Objective("token")


def masks(samples: list[int], *, layer: int = 0, place: int = 0, part: int = 0, parts: int = 1) -> Tensor:
    noise = Noise(rate=0.25, seed=5, samples=torch.tensor(samples), part=part, parts=parts)
    return noise.drop(torch.ones(len(samples), 8 // parts, 64), layer, place)


def test_a_mask_belongs_to_the_sample() -> None:
    """Whatever else is in the micro-batch, sample 7 loses the same values; another sample or layer others."""
    alone = masks([7])[0]
    assert torch.equal(masks([3, 7])[1], alone)
    for other in (masks([8])[0], masks([7], layer=1)[0], masks([7], place=1)[0]):
        assert not torch.equal(other, alone)


def test_a_part_of_the_sequence_gets_its_part_of_the_mask() -> None:
    """Two sequence-parallel ranks together drop what one rank drops."""
    halves = [masks([7], part=part, parts=2) for part in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), masks([7]))


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    """A quarter is zero, the rest is scaled up by 4/3."""
    kept = masks(list(range(50)))
    assert abs(float((kept == 0).float().mean()) - 0.25) < 0.01
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])


def numbers(loss: float, *, skipped: bool = False) -> StepNumbers:
    return StepNumbers(loss=loss, tokens=1, grad_norm=1.0, stop_asked=False, skipped=skipped)


def watch(notes: list[str], **recipe: object) -> BadLoss:
    return BadLoss(RecipeSpec(**recipe), lambda step: [SampleRef(2, step)], notes.append)  # type: ignore[arg-type]


def test_a_spike_needs_a_mean_to_rise_above() -> None:
    """No limit while the first losses fall; then the threshold times the running mean."""
    bad = watch([], spike_threshold=2.0)
    for step in range(WARM_UP):
        assert bad.limit is None
        bad.judge(step, numbers(3.0))
    assert bad.limit == pytest.approx(6.0)
    assert watch([]).limit is None


def test_a_skip_is_told_and_too_many_end_the_run() -> None:
    """Each left-out update names its samples; after ten in a row the run stops; a good step starts anew."""
    notes: list[str] = []
    bad = watch(notes, on_bad_loss="skip")
    for step in range(MAX_SKIPS):
        bad.judge(step, numbers(math.nan, skipped=True))
    bad.judge(50, numbers(3.0))
    assert len(notes) == MAX_SKIPS
    assert "its samples: 2:0" in notes[0]
    for step in range(MAX_SKIPS):
        bad.judge(step, numbers(math.nan, skipped=True))
    with pytest.raises(DivergedError, match="11 steps in a row"):
        bad.judge(99, numbers(math.nan, skipped=True))


def test_stop_stops_at_once() -> None:
    """The default policy: the first bad loss ends the run, and its samples are in the log."""
    notes: list[str] = []
    with pytest.raises(DivergedError, match="step 4"):
        watch(notes).judge(4, numbers(math.inf, skipped=True))
    assert "2:4" in notes[0]
