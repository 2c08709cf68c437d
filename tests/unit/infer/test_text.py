"""Text from token ids: pieces add up, characters stay whole, stop strings never show."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.errors import ConfigError
from llmctl.worker.hf.tokenizer import byte_tokenizer
from llmctl.worker.infer.chat import ChatTemplate
from llmctl.worker.infer.text import Detokenizer, StopStrings, Vocabulary, vocabulary


def words(**config: object) -> Vocabulary:
    files = {
        "tokenizer.json": json.dumps(byte_tokenizer()).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"eos_token_id": [256, 3]}',
    }
    return vocabulary(files)


BYTES = words(eos_token="<|endoftext|>", bos_token={"content": "<s>"})  # noqa: S106


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(1, 4))
def test_pieces_are_the_whole_text_and_never_cut_a_character(text: str, size: int) -> None:
    """Whatever comes in one go: no U+FFFD in between, and together exactly the text."""
    ids = BYTES.encode(text)
    pieces = Detokenizer(BYTES)
    shown = [pieces.add(ids[at : at + size]) for at in range(0, len(ids), size)]
    assert "".join(shown) + pieces.finish() == text
    assert "\ufffd" not in "".join(shown).replace("\ufffd" * text.count("\ufffd"), "") or "\ufffd" in text


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=30), st.integers(2, 9))
def test_bytes_that_are_no_text_show_the_same_however_they_come(ids: list[int], size: int) -> None:
    """A model may say anything; the same tokens must always be the same text."""
    slowly, quickly = Detokenizer(BYTES), Detokenizer(BYTES)
    one = "".join(slowly.add([token]) for token in ids) + slowly.finish()
    other = "".join(quickly.add(ids[at : at + size]) for at in range(0, len(ids), size)) + quickly.finish()
    assert one == other


@settings(deadline=None)
@given(st.text("ab<>", max_size=30), st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3), st.data())
def test_a_text_ends_before_its_first_stop_string(text: str, stops: list[str], data: st.DataObject) -> None:
    """As if the whole text had been there at once, however it is cut."""
    found = StopStrings(stops)
    shown, at = "", 0
    while at < len(text):
        size = data.draw(st.integers(1, len(text) - at))
        shown += found.add(text[at : at + size])
        assert not any(stop in shown for stop in stops)
        at += size
        if found.hit:
            break
    else:
        shown += found.finish()
    places = [text.find(stop) for stop in stops if stop in text]
    if not places:
        assert shown == text
    else:
        assert found.hit
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)


def test_what_ends_a_text_is_taken_from_the_models_files() -> None:
    """generation_config.json's ids, one or several, and the tokenizer's own end."""
    assert BYTES.ends == (256, 3)
    assert BYTES.special == {"eos_token": "<|endoftext|>", "bos_token": "<s>"}


def test_a_template_is_rendered_as_the_model_wants_it() -> None:
    """With the special tokens, block trimming and the assistant's turn at the end."""
    source = "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    template = ChatTemplate(
        words(
            bos_token={"content": "<s>"}, chat_template=source + "{% if add_generation_prompt %}>{% endif %}"
        )
    )
    assert template.render([{"role": "user", "content": "hi"}]) == "<s>[user]hi\n>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no system role') }}",
        "{% for %}",
    ],
)
def test_a_template_can_only_compute_text(source: str) -> None:
    """It comes from whoever made the weights: no way to Python's insides; its errors are the request's."""
    with pytest.raises(ConfigError):
        ChatTemplate(words(chat_template=source)).render([{"role": "user", "content": "hi"}])


def test_a_model_without_template_or_tokenizer_says_so() -> None:
    """And what to do instead."""
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTemplate(words()).render([{"role": "user", "content": "hi"}])
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        vocabulary({})
