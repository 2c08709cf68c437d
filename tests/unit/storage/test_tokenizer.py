"""Tokenizers: bytes invert exactly, files keep their documents whole, batches equal single texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders

from llmctl.errors import ConfigError, NotFoundError
from llmctl.storage.corpus.tokenizer import ByteTokenizer, FileTokenizer, open_tokenizer

TEXTS = [
    "",
    "hello world",
    "naïve café — 日本語 🙂\n",
    "tabs\tand\r\nnewlines\u2028odd",
    "def f(x):\n    return x",
]


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real byte-level BPE, trained here, with truncation and padding left on as some files have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_bytes_come_back_exactly(data: bytes) -> None:
    """Any bytes, read as text with surrogateescape, encode to themselves and decode back."""
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(data.decode("utf-8", "surrogateescape"))
    assert ids == list(data)
    assert tokenizer.decode_bytes([*ids, tokenizer.eos]) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@given(st.lists(st.tuples(st.text(max_size=40), st.booleans()), max_size=12), st.sampled_from(["<u2", "<u4"]))
@settings(deadline=None)
def test_encode_documents_is_encode_with_eos(batch: list[tuple[str, bool]], dtype: str) -> None:
    """The fast path gives the slow path's ids, eos after each closed text, and the right lengths."""
    tokenizer = ByteTokenizer()
    ids, lengths = tokenizer.encode_documents([text for text, _ in batch], dtype, [end for _, end in batch])
    slow = [tokenizer.encode(text) + [tokenizer.eos] * end for text, end in batch]
    assert ids.dtype == np.dtype(dtype)
    assert ids.tolist() == [token for document in slow for token in document]
    assert lengths.tolist() == [len(document) for document in slow]


def test_lone_surrogates_do_not_stop_a_corpus(tokenizer_json: Path) -> None:
    """JSON can carry half a surrogate pair; it becomes U+FFFD, and a pair becomes its character."""
    text = json.loads('"a\\ud83d b\\ud83d\\ude42"') + "\ud83d\ude42"
    for tokenizer in (ByteTokenizer(), open_tokenizer(str(tokenizer_json))):
        assert tokenizer.decode(tokenizer.encode(text)) == "a\ufffd b🙂🙂"


def test_a_tokenizer_file_cuts_and_pads_nothing(tokenizer_json: Path) -> None:
    """Truncation and padding stored in the file are not applied to documents."""
    tokenizer = open_tokenizer(str(tokenizer_json))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_a_tokenizer_file_has_eos_and_documents(tokenizer_json: Path) -> None:
    """eos is found by its usual name, ends each document, and is left out of decoded text."""
    tokenizer = open_tokenizer(str(tokenizer_json))
    assert tokenizer.eos == 1
    ids, lengths = tokenizer.encode_documents(TEXTS, "<u2", [True] * len(TEXTS))
    assert ids.tolist().count(1) == len(TEXTS)
    assert int(lengths.sum()) == len(ids)
    assert tokenizer.decode(ids.tolist()) == "".join(TEXTS)
    assert open_tokenizer(str(tokenizer_json), eos="<pad>").eos == 0


def test_vocab_size_counts_the_largest_id() -> None:
    """A vocabulary with gaps needs a dtype for its largest id."""
    vocabulary = {"a": 0, "b": 70_000, "</s>": 5}
    document = Tokenizer(models.WordLevel(vocabulary)).to_str().encode()
    assert FileTokenizer("t", document).vocab_size == 70_001


def test_a_file_without_eos_asks_for_it(tmp_path: Path) -> None:
    """No known end-of-text token: the error says which option names it."""
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0})).save(str(path))
    with pytest.raises(ConfigError, match="no known end-of-text token") as caught:
        open_tokenizer(str(path))
    assert "--eos" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="no token 'zzz'"):
        open_tokenizer(str(path), eos="zzz")


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"{}", b"\xff\xfe", b'{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds, the error is ours and names it."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not"):
        open_tokenizer(str(path))
    with pytest.raises(NotFoundError, match="absent"):
        open_tokenizer(str(tmp_path / "absent.json"))
