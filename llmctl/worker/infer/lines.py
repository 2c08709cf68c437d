"""PURE: one line of a batch's input as a request, and what came of it as one line of its output.

A line is a JSON object with `prompt` (or `text`), `messages` or `tokens`; `id` and sampling keys may stand
there, keys that nobody knows are passed over. What can't be a request becomes an error record in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llmctl.errors import ConfigError, IntegrityError
from llmctl.wire import codec
from llmctl.wire.infer import ADD, GENERATE, Answer, Order, SamplingSpec, TokenLogprob
from llmctl.worker.infer.chat import ChatTemplate
from llmctl.worker.infer.generation import Collected
from llmctl.worker.infer.text import Vocabulary

LONGEST_LINE = 16 << 20
"""Bytes of one input line."""
MAX_TOKENS = 128
"""New tokens where neither the line nor the command says how many."""

SAMPLING = frozenset(f.name for f in fields(SamplingSpec)) - {"stop_tokens"}


@dataclass(frozen=True)
class Wanted:
    """A request of one line. `stops`: strings that end its text."""

    index: int
    id: Any
    order: Order
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bad:
    """A line that is no request, and why."""

    index: int
    id: Any
    error: str


@dataclass(frozen=True)
class Reader:
    """How lines of one batch are understood.

    Attributes:
        defaults: sampling of lines that say nothing, and `stop`.
        limit: prompt and answer together, tokens. vocab_size: ids are below it.
    """

    words: Vocabulary
    template: ChatTemplate
    task: str
    defaults: Mapping[str, Any]
    limit: int
    vocab_size: int

    def read(self, index: int, line: bytes) -> Wanted | Bad:
        """One input line."""
        document: Any = None
        try:
            document = _object(line)
            return self._request(index, document.get("id", index), document)
        except (ConfigError, IntegrityError) as error:
            name = document.get("id", index) if isinstance(document, dict) else index
            return Bad(index=index, id=name, error=error.message)

    def _request(self, index: int, name: Any, document: Mapping[str, Any]) -> Wanted:
        tokens = self._tokens(document)
        given = {k: v for k, v in document.items() if k in (*SAMPLING, "stop") and v is not None}
        settings = {"max_tokens": MAX_TOKENS, **self.defaults, **given}
        stops = stop_strings(settings.pop("stop", None))
        if self.task != GENERATE:
            settings = {"max_tokens": 1}
        room = self.limit - len(tokens)
        if room < (1 if self.task == GENERATE else 0):
            raise ConfigError(f"{len(tokens)} tokens, the limit is {self.limit} with the answer")
        sampling = self._sampling(settings, max(1, room))
        return Wanted(
            index=index,
            id=name,
            order=Order(op=ADD, task=self.task, tokens=tuple(tokens), sampling=sampling),
            stops=stops,
        )

    def _sampling(self, settings: Mapping[str, Any], room: int) -> SamplingSpec:
        sampling = codec.decode(SamplingSpec, {**settings, "stop_tokens": list(self.words.ends)})
        sampling.check()
        return replace(sampling, max_tokens=min(sampling.max_tokens, room))

    def _tokens(self, document: Mapping[str, Any]) -> list[int]:
        given = [key for key in ("prompt", "text", "messages", "tokens") if document.get(key) is not None]
        if len(given) != 1:
            raise ConfigError("needs one of `prompt`, `text`, `messages` and `tokens`")
        value = document[given[0]]
        if given[0] == "tokens":
            found = token_ids(value, self.vocab_size)
        elif given[0] == "messages":
            found = self.words.encode(self.template.render(chat_messages(value)), special=False)
        elif not isinstance(value, str):
            raise ConfigError(f"`{given[0]}` must be text")
        else:
            found = self.words.encode(value)
        if not found:
            raise ConfigError("empty: there is no token to go on from")
        return found


def _object(line: bytes) -> dict[str, Any]:
    if not line.strip():
        raise ConfigError("the line is empty")
    if len(line) > LONGEST_LINE:
        raise ConfigError(f"the line is longer than {LONGEST_LINE >> 20} MiB")
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError("not a JSON object")
    return document


def token_ids(value: Any, vocab_size: int) -> list[int]:
    """A list of ids that the model has. Raises ConfigError."""
    whole = isinstance(value, list) and all(isinstance(t, int) and not isinstance(t, bool) for t in value)
    if not whole or any(not 0 <= token < vocab_size for token in value):
        raise ConfigError(f"`tokens` must be whole numbers from 0 to {vocab_size - 1}")
    return list(value)


def chat_messages(value: Any) -> list[dict[str, Any]]:
    """Messages of a chat; content in parts of text is joined. Raises ConfigError."""
    if not isinstance(value, list) or not value:
        raise ConfigError("`messages` must be a list with at least one message")
    return [_message(entry) for entry in value]


def _message(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("role"), str):
        raise ConfigError("a message needs a `role` and a `content`")
    content = entry.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise ConfigError("only text can be the content of a message")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise ConfigError("the content of a message must be text")
    return {**entry, "content": content}


def stop_strings(value: Any) -> tuple[str, ...]:
    """`stop`: nothing, one string, or a few. Raises ConfigError."""
    found = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(found, list) or not all(isinstance(stop, str) for stop in found) or len(found) > 16:
        raise ConfigError("`stop` must be a string or a list of at most 16")
    return tuple(stop for stop in found if stop)


# --- records ---


def error_record(bad: Bad) -> dict[str, Any]:
    return {"id": bad.id, "index": bad.index, "error": bad.error}


def text_record(wanted: Wanted, found: Collected) -> dict[str, Any]:
    """What `generate` made of a line."""
    record = {
        "id": wanted.id,
        "index": wanted.index,
        "text": found.text,
        "prompt_tokens": len(wanted.order.tokens),
        "completion_tokens": len(found.tokens),
        "finish_reason": found.finish,
    }
    if wanted.order.sampling.logprobs is not None:
        record["tokens"] = found.tokens
        record["logprobs"] = [_logprob(one) for one in found.logprobs]
    return record


def answer_record(wanted: Wanted, answer: Answer) -> dict[str, Any]:
    """What `score` or `embed` made of a line."""
    record = {"id": wanted.id, "index": wanted.index, "prompt_tokens": len(wanted.order.tokens)}
    if answer.embedding:
        return {**record, "embedding": list(answer.embedding)}
    total = math.fsum(answer.scores)
    count = len(answer.scores)
    return {
        **record,
        "logprob": total,
        "perplexity": math.exp(min(700.0, -total / count)) if count else None,
        "token_logprobs": list(answer.scores),
    }


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    top = {str(token): value for token, value in zip(one.top_tokens, one.top_logprobs, strict=True)}
    return {"token": one.token, "logprob": one.logprob, **({"top": top} if top else {})}
