"""Whether a corpus was tokenised with the model's own tokenizer: the same ids for the same tokens.

Training a model on another tokenizer's ids would not fail, it would only learn nonsense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.corpus.tokenizer import BYTES
from llmctl.wire.model import ModelConfig

STAGE = "model"


def check_vocabulary(
    config: ModelConfig, tokenizer: bytes | None, *, corpus: bytes | None, name: str, vocab_size: int
) -> None:
    """Refuse a corpus whose ids mean something else to the model.

    Args:
        tokenizer: the model's tokenizer.json; None: it brings none, only the number of ids can be compared.
        corpus: the tokenizer.json that the corpus was made with; None: it was made of `bytes`.
        name, vocab_size: of the corpus' tokenizer.

    Raises:
        ConfigError: says what differs.
    """
    hint = "shard the text with the model's own: llmctl data shard … --tokenizer MODEL/tokenizer.json"
    if vocab_size > config.vocab_size:
        told = f"the corpus has {vocab_size} token ids, the model knows {config.vocab_size}"
        raise ConfigError(told, hint=hint, stage=STAGE)
    if tokenizer is None or tokenizer == corpus:
        return
    if corpus is None:
        what = "single bytes" if name == BYTES else name
        raise ConfigError(
            f"the corpus was tokenised as {what}, the model has a tokenizer", hint=hint, stage=STAGE
        )
    ours, theirs = _vocabulary(corpus), _vocabulary(tokenizer)
    wrong = next((token for token, index in ours.items() if theirs.get(token) != index), None)
    if wrong is not None:
        told = f"id {ours[wrong]} in the corpus, {theirs.get(wrong, 'none')} in the model"
        raise ConfigError(f"the corpus has another tokenizer: {wrong!r} is {told}", hint=hint, stage=STAGE)


def _vocabulary(document: bytes) -> dict[str, int]:
    """Token to id, of a tokenizer.json of any kind."""
    try:
        parsed: Mapping[str, Any] = json.loads(document)
        vocab = parsed["model"]["vocab"]
        # Unigram models list [token, score] in the order of ids.
        found = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
        found.update({token["content"]: token["id"] for token in parsed.get("added_tokens") or ()})
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"not a Hugging Face tokenizer.json: {error!r}", stage=STAGE) from None
    return found
