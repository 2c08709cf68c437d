"""The engine's plans, without a model: who gets a slot, what goes into a step, what comes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.errors import ConfigError
from llmctl.wire.infer import Answer, Order, SamplingSpec
from llmctl.wire.model import ModelConfig
from llmctl.worker.infer.engine.place import Place, portion, vocab_share
from llmctl.worker.infer.engine.plan import KIND, POOL_LAST, Step, make_step, pack, unpack
from llmctl.worker.infer.engine.sampler import Outcome
from llmctl.worker.infer.engine.scheduler import Limits, Scheduler, uniform_number
from tests.engine_kit import Told, add

VOCAB = 50


def scheduler(**changes: int) -> Scheduler:
    limits = {"slots": 2, "length": 16, "chunk": 5, "waiting": 100, "vocab": VOCAB, "groups": 1}
    return Scheduler(Limits(**{**limits, **changes}))


class FakeModel:
    """Checks that what goes in could be computed, and answers (position + 1) % VOCAB for every output."""

    def __init__(self, slots: int, rows: int) -> None:
        self.filled = dict.fromkeys(range(slots), 0)
        self.rows = rows

    def outcome(self, step: Step) -> Outcome:
        assert 0 < len(step.rows) <= self.rows
        for _, slot, position in step.rows.tolist():
            assert position in (0, self.filled[slot]), "a position was skipped"
            self.filled[slot] = position + 1
        kinds = step.outputs[:, KIND]
        values = torch.zeros(len(kinds), 2 + 2 * step.alternatives, dtype=torch.float64)
        positions = step.rows[step.outputs[:, 0], 2]
        values[:, 0] = (positions + 1) % VOCAB
        values[:, 1] = -positions.double()
        return Outcome(values=values, means=torch.ones(int((kinds == POOL_LAST).sum()), 3))


def run(subject: Scheduler, model: FakeModel, groups: int = 1) -> Iterator[tuple[str, Answer]]:
    """Every group has a step on its way before the first one's comes back."""
    flying: list[Step | None] = [None] * groups
    while not subject.idle:
        for group in range(groups):
            step = flying[group]
            if step is not None:
                for key, answer in subject.apply(step, model.outcome(step)):
                    yield str(key), answer
            flying[group] = subject.step(group)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 15), st.integers(1, 9)), min_size=1, max_size=12),
    slots=st.integers(1, 5),
    chunk=st.integers(1, 20),
    groups=st.integers(1, 3),
    task=st.sampled_from(["generate", "score", "embed"]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_is_answered_whole(
    lengths: list[tuple[int, int]], slots: int, chunk: int, groups: int, task: str
) -> None:
    """In any mix of lengths, slots and chunks every request gets its own tokens, in order, and one end; after
    it all slots are free."""
    groups = min(groups, slots)
    subject = scheduler(slots=slots, chunk=chunk, groups=groups)
    for index, (prompt, new) in enumerate(lengths):
        assert subject.add(str(index), add(str(index), [7] * prompt, task, max_tokens=new)) is None or (
            task == "score" and prompt == 1
        )
    found = {str(index): Told() for index in range(len(lengths))}
    for key, answer in run(subject, FakeModel(slots, chunk + slots), groups):
        found[key].take(answer)
    for (prompt, new), told in zip(lengths, found.values(), strict=True):
        if task == "generate":
            assert told.tokens == [at % VOCAB for at in range(prompt, prompt + min(new, 16 - prompt))]
            assert told.last.finish == "length"
        elif task == "score" and prompt > 1:
            assert told.last.scores == tuple(-float(at) for at in range(prompt - 1))
        elif task == "embed":
            assert told.last.embedding == (1.0, 1.0, 1.0)
    assert subject.stats().free == slots


def test_prompts_are_fed_in_chunks_beside_those_that_decode() -> None:
    """A long prompt never keeps a decoding request from its next token."""
    subject, model = scheduler(), FakeModel(2, 7)
    subject.add("a", add("a", [1], max_tokens=9))
    first = subject.step(0)
    assert first is not None
    subject.apply(first, model.outcome(first))
    subject.add("b", add("b", [2] * 12))
    for fed in (5, 5, 2):
        step = subject.step(0)
        assert step is not None
        assert [row[1] for row in step.rows.tolist()] == [0] + [1] * fed
        answers = subject.apply(step, model.outcome(step))
        assert [key for key, _ in answers] == (["a", "b"] if fed == 2 else ["a"])


@pytest.mark.parametrize("flying", [False, True])
def test_a_cancelled_request_leaves_its_slot_and_hears_nothing_more(flying: bool) -> None:
    """Whether its step is on the way or not, it ends as cancelled, once."""
    subject, model = scheduler(slots=1), FakeModel(1, 6)
    subject.add("a", add("a", [1, 2]))
    subject.add("b", add("b", [3]))
    step = subject.step(0)
    assert step is not None
    if not flying:
        subject.apply(step, model.outcome(step))
    answers = subject.cancel("a")
    if flying:
        assert answers == []
        answers = subject.apply(step, model.outcome(step))
    assert [(key, answer.finish, answer.tokens) for key, answer in answers] == [("a", "cancelled", ())]
    assert subject.cancel("a") == []
    assert [answer.finish for _, answer in subject.cancel("b")] == ["cancelled"]
    assert subject.idle


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (add("a", []), "no tokens"),
        (add("a", [1] * 16), "too long: 16 tokens, 15 fit"),
        (add("a", [1] * 17, "score"), "too long: 17 tokens, 16 fit"),
        (add("a", [1, VOCAB]), "token 50 is not in the vocabulary of 50"),
        (add("a", [-1]), "token -1 is not in the vocabulary of 50"),
    ],
)
def test_what_can_not_be_done_is_refused_at_once(order: Order, reason: str) -> None:
    """A bad request is answered, and takes no slot."""
    subject = scheduler()
    refused = subject.add("a", order)
    assert refused is not None
    assert (refused.finish, refused.error) == ("error", reason)
    assert subject.idle


def test_the_queue_is_bounded_and_a_drain_closes_it() -> None:
    """One request too many is refused; so is any after a drain, which lets the others finish."""
    subject = scheduler(waiting=2)
    assert [subject.add(name, add(name, [1], max_tokens=2)) for name in "ab"] == [None, None]
    refused = subject.add("c", add("c", [1]))
    assert refused is not None
    assert "busy" in str(refused.error)
    subject.drain()
    assert "draining" in str(subject.add("d", add("d", [1])))
    ends = [key for key, answer in run(subject, FakeModel(2, 7)) if answer.finish == "length"]
    assert ends == ["a", "b"]


def test_an_answer_ends_before_a_stop_token() -> None:
    """The stop token itself is not told."""
    subject = scheduler()
    subject.add("a", add("a", [9, 9], stop_tokens=(4,)))
    answers = [answer for _, answer in run(subject, FakeModel(2, 7))]
    assert [token for answer in answers for token in answer.tokens] == [2, 3]
    assert answers[-1].finish == "stop"


def test_a_seed_gives_the_same_numbers_everywhere() -> None:
    """They are a pure function of seed and position, spread over [0, 1)."""
    numbers = [uniform_number(3, index) for index in range(1000)]
    assert numbers[:2] == [uniform_number(3, 0), uniform_number(3, 1)]
    assert min(numbers) >= 0
    assert max(numbers) < 1
    assert abs(sum(numbers) / 1000 - 0.5) < 0.05
    assert len(set(numbers)) == 1000


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 99)] * 3), max_size=6),
    numbers=st.lists(st.floats(0, 1), max_size=6),
)
def test_a_plan_arrives_as_it_was_sent(rows: list[tuple[int, int, int]], numbers: list[float]) -> None:
    """Whatever its size, it travels as one tensor of fixed size, floats bit by bit."""
    outputs = [(0, 1, 2, 3, 4)] * len(numbers)
    step = make_step(1, rows, outputs, [(number, 1.0, 0.5, 2.0) for number in numbers])
    again = unpack(pack(step, 6))
    assert (again.group, again.order) == (1, 0)
    for name in ("rows", "outputs", "numbers"):
        assert torch.equal(getattr(again, name), getattr(step, name))


@given(tp=st.integers(1, 4), pp=st.integers(1, 5), vocab=st.integers(4, 99), ffn=st.integers(4, 40))
def test_every_part_of_a_model_has_exactly_one_holder(tp: int, pp: int, vocab: int, ffn: int) -> None:
    """Shares may differ in size; together they are the model."""
    config = ModelConfig(vocab_size=vocab, dim=32, layers=7, heads=12, kv_heads=4, ffn_dim=ffn, head_size=2)
    parts = [portion(config, Place(rank=rank, tp=tp, pp=pp)) for rank in range(tp * pp)]
    for name, total in (("kv_heads", 4), ("ffn", ffn), ("vocab", vocab)):
        held = [index for part in parts[:tp] for index in range(*getattr(part, name))]
        assert held == list(range(total))
    assert [layer for part in parts[::tp] for layer in range(*part.layers)] == list(range(7))
    widths = [stop - first for first, stop in (vocab_share(vocab, tp, shard) for shard in range(tp))]
    assert widths == sorted(widths, reverse=True)


def test_more_ranks_than_heads_are_refused() -> None:
    """Nobody may hold nothing."""
    config = ModelConfig(vocab_size=9, dim=32, layers=2, heads=6, kv_heads=3, ffn_dim=8, head_size=2)
    with pytest.raises(ConfigError, match="3 key-value heads"):
        portion(config, Place(tp=4))
    with pytest.raises(ConfigError, match="2 layers"):
        portion(config, Place(pp=3))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"logprobs": 99},
        {"repetition_penalty": 0.0},
    ],
)
def test_sampling_that_means_nothing_is_refused_by_name(changes: dict[str, float]) -> None:
    """The error names the field."""
    with pytest.raises(ConfigError, match=next(iter(changes))):
        SamplingSpec(**changes).check()  # type: ignore[arg-type]
