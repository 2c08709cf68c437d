"""A batch's lines and OpenAI's bodies as requests: what is refused, and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmctl.wire.infer import GENERATE, SCORE, Answer
from llmctl.worker.infer.chat import ChatTemplate
from llmctl.worker.infer.lines import Bad, Reader, Wanted, answer_record
from llmctl.worker.infer.openai import Model, RequestError
from tests.unit.infer.test_text import words

WORDS = words(
    eos_token={"content": "<|endoftext|>"}, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"
)


def reader(task: str = GENERATE, **defaults: Any) -> Reader:
    return Reader(
        words=WORDS, template=ChatTemplate(WORDS), task=task, defaults=defaults, limit=20, vocab_size=257
    )


def read(document: object, **defaults: Any) -> Wanted | Bad:
    return reader(**defaults).read(4, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", "the line is empty"),
        (b"  \n", "the line is empty"),
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "needs one of"),
        (b'{"prompt": "a", "tokens": [1]}', "needs one of"),
        (b'{"prompt": 3}', "must be text"),
        (b'{"prompt": ""}', "empty"),
        (b'{"tokens": [257]}', "from 0 to 256"),
        (b'{"tokens": [true]}', "whole numbers"),
        (b'{"messages": []}', "at least one"),
        (b'{"messages": [{"role": "user"}]}', "content"),
        (b'{"prompt": "aaaaaaaaaaaaaaaaaaaaaaaaa"}', "25 tokens, the limit is 20"),
        (b'{"prompt": "a", "max_tokens": "b"}', "max_tokens"),
        (b'{"prompt": "a", "temperature": -1}', "temperature"),
        (b'{"prompt": "a", "stop": 3}', "stop"),
        (b'{"prompt": "\xff"}', "not JSON"),
    ],
)
def test_a_bad_line_is_an_error_record(line: bytes, error: str) -> None:
    """Each names what is wrong; none ends the batch."""
    found = reader().read(4, line)
    assert isinstance(found, Bad)
    assert error in found.error
    assert found.index == 4


def test_a_line_wins_over_the_defaults_and_the_answer_fits_the_room() -> None:
    """`id` is kept as it is; more tokens than fit become as many as fit."""
    found = read({"id": {"a": 1}, "prompt": "abc", "max_tokens": 99, "stop": "x", "more": 1}, temperature=0.5)
    assert isinstance(found, Wanted)
    assert (found.id, found.stops) == ({"a": 1}, ("x",))
    assert (found.order.sampling.max_tokens, found.order.sampling.temperature) == (17, 0.5)
    assert found.order.sampling.stop_tokens == WORDS.ends
    assert isinstance(read({"prompt": "abc"}), Wanted)
    assert isinstance(
        read({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}), Wanted
    )


def test_a_score_is_the_sum_of_its_tokens() -> None:
    """A perplexity that no float holds is cut, not an error."""
    wanted = reader(SCORE).read(0, b'{"text": "abcd"}')
    assert isinstance(wanted, Wanted)
    record = answer_record(wanted, Answer(id="r", scores=(-1.0, -2.0, -3.0), finish="stop"))
    assert (record["logprob"], record["perplexity"]) == (-6.0, pytest.approx(7.389, abs=1e-3))
    assert answer_record(wanted, Answer(id="r", scores=(-1e9,), finish="stop"))["perplexity"] > 1e300


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 400),
        ({"prompt": "a", "n": 2}, 400),
        ({"prompt": "a", "echo": True}, 400),
        ({"prompt": ["a", "b"]}, 400),
        ({"prompt": "a", "max_tokens": 0}, 400),
        ({"prompt": "a", "presence_penalty": 0.5}, 400),
        ({"prompt": "a", "logprobs": 99}, 400),
        ({"prompt": "a", "logprobs": "yes"}, 400),
        ({"prompt": "a" * 20}, 400),
        ({"prompt": "a", "model": "other"}, 404),
    ],
)
def test_what_can_not_be_done_is_refused_in_openais_form(body: Any, status: int) -> None:
    """Nothing that was asked for is left out in silence."""
    model = Model(name="m", words=WORDS, template=ChatTemplate(WORDS), limit=20, vocab_size=257)
    with pytest.raises(RequestError) as caught:
        model.ask(body, chat=False)
    assert caught.value.status == status
    assert set(caught.value.document()["error"]) == {"message", "type", "param", "code"}


def test_defaults_are_openais() -> None:
    """16 new tokens for a completion, all the room for a chat, temperature 1."""
    model = Model(name="m", words=WORDS, template=ChatTemplate(WORDS), limit=100, vocab_size=257)
    asked = model.ask({"prompt": "ab"}, chat=False)
    assert (asked.order.sampling.max_tokens, asked.order.sampling.temperature, asked.stream) == (
        16,
        1.0,
        False,
    )
    messages = [{"role": "user", "content": "ab"}]
    talk = model.ask({"messages": messages, "logprobs": True, "top_logprobs": 3, "stream": True}, chat=True)
    assert (talk.order.sampling.max_tokens, talk.order.sampling.logprobs, talk.stream) == (98, 3, True)
