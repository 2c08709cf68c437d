"""Choosing tokens: against plain arithmetic, one row at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmctl.worker.infer.engine.plan import POOL, POOL_LAST, SAMPLE, SCORE, Step, make_step
from llmctl.worker.infer.engine.sampler import CANDIDATES, Sampler, draw

VOCAB = 600


def logits(rows: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def kept(row: Tensor, top_k: int, top_p: float) -> dict[int, float]:
    """Tokens that may be drawn and their probabilities, the slow way."""
    order = row.argsort(descending=True).tolist()
    chances = torch.softmax(row.double(), dim=-1)
    order = order[: top_k or None]
    total, found, before = sum(float(chances[token]) for token in order), {}, 0.0
    for token in order:
        if before >= top_p:
            break
        found[token] = float(chances[token]) / total
        before += found[token]
    whole = sum(found.values())
    return {token: chance / whole for token, chance in found.items()}


@given(
    seed=st.integers(0, 50),
    top_k=st.sampled_from([0, 1, 5, 400, 5000]),
    top_p=st.sampled_from([0.01, 0.5, 0.95, 1.0]),
    spread=st.sampled_from([0.2, 3.0]),
)
@settings(max_examples=60, deadline=None)
def test_draws_follow_the_filtered_distribution(seed: int, top_k: int, top_p: float, spread: float) -> None:
    """Evenly spread numbers hit every kept token as often as its probability says, and no other; also where
    the first candidates do not suffice."""
    row = logits(1, seed, spread)[0]
    wanted = kept(row, top_k, top_p)
    count = 400
    hits = [draw(row, top_k, top_p, (index + 0.5) / count) for index in range(count)]
    assert set(hits) <= set(wanted)
    for token, chance in wanted.items():
        assert abs(hits.count(token) / count - chance) <= 1 / count + 1e-3


def test_a_flat_distribution_needs_more_than_the_first_candidates() -> None:
    """The case that the shortcut must not get wrong is among the ones above."""
    assert len(kept(logits(1, 0, 0.2)[0], 0, 0.95)) > CANDIDATES


def step_of(outputs: list[tuple[int, int, int, int, int]], **numbers: float) -> Step:
    rows = [(7, 0, 0), (8, 0, 1), (9, 1, 0)]
    given = {"temperature": 0.0, "top_p": 1.0, "uniform": 0.3, "penalty": 1.0, **numbers}
    return make_step(0, rows, outputs, [tuple(given.values())] * len(outputs))  # type: ignore[list-item]


def sampler() -> Sampler:
    return Sampler(slots=2, vocab=VOCAB, dim=4, device=torch.device("cpu"))


def test_log_probabilities_are_the_models_own() -> None:
    """Of the chosen token and of the likeliest, untouched by temperature or penalty."""
    step = step_of([(1, SAMPLE, 0, 0, 2), (2, SCORE, 11, 0, 0)], temperature=5.0)
    given = logits(2)
    subject = sampler()
    subject.watch(step.rows)
    values = subject.choose(step, given)
    chances = torch.log_softmax(given.double(), dim=-1)
    token = int(values[0, 0])
    assert float(values[0, 1]) == pytest.approx(float(chances[0, token]), abs=1e-5)
    assert values[0, 2:4].tolist() == given[0].topk(2).indices.tolist()
    assert int(values[1, 0]) == 11
    assert float(values[1, 1]) == pytest.approx(float(chances[1, 11]), abs=1e-5)


def test_a_row_does_not_see_its_neighbours() -> None:
    """The same logits and number give the same token and log-probability, alone and in company."""
    given = logits(3)
    outputs = [(0, SAMPLE, 0, 40, 1), (1, SAMPLE, 0, 40, 1), (2, SAMPLE, 0, 40, 1)]
    together = sampler().choose(step_of(outputs, temperature=0.9, top_p=0.9), given)
    for index in range(3):
        step = step_of(outputs[index : index + 1], temperature=0.9, top_p=0.9)
        assert torch.equal(sampler().choose(step, given[index : index + 1])[0], together[index])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_repetition_penalty_makes_seen_tokens_rarer(sign: float) -> None:
    """Whatever the sign of their logits; and a new request in the slot begins without a past."""
    subject = sampler()
    step = step_of([(1, SAMPLE, 0, 0, -1)], penalty=2.0)
    given = torch.full((1, VOCAB), sign * 3.0)
    given[0, 8] += 1.0
    given[0, 20] += 0.5
    subject.watch(step.rows)
    assert int(subject.choose(step, given)[0, 0]) == 20
    fresh = make_step(0, [(3, 0, 0)], [(0, SAMPLE, 0, 0, -1)], [(0.0, 1.0, 0.0, 2.0)])
    subject.watch(fresh.rows)
    assert int(subject.choose(fresh, given)[0, 0]) == 8


def test_means_are_gathered_over_chunks() -> None:
    """A prompt that came in two steps has the mean of all its states; its slot's next one begins anew."""
    subject = sampler()
    states = torch.arange(12.0).view(3, 4)
    for _ in range(2):
        first = make_step(0, [(5, 1, 0)], [(0, POOL, 0, 0, -1)], [(0.0, 1.0, 0.0, 1.0)])
        subject.watch(first.rows)
        assert len(subject.pool(first, states[:1])) == 0
        rows = [(5, 1, 1), (5, 1, 2)]
        outputs = [(0, POOL, 0, 0, -1), (1, POOL_LAST, 0, 0, -1)]
        second = make_step(0, rows, outputs, [(0.0, 1.0, 0.0, 1.0)] * 2)
        subject.watch(second.rows)
        assert torch.allclose(subject.pool(second, states[1:]), states.mean(dim=0))


def test_a_number_close_to_one_still_hits_a_token() -> None:
    """Rounding at the end of the sum must not run off it."""
    row = torch.full((VOCAB,), -math.inf)
    row[3] = row[4] = 0.0
    assert draw(row, 0, 1.0, 1 - 2**-53) == 4
    assert draw(row, 2, 1.0, 0.0) in (3, 4)
