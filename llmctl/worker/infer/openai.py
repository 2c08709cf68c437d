"""PURE: OpenAI's requests and answers, `/v1/completions` and `/v1/chat/completions`, as far as they go here.

What is asked for and not there is refused by name, never quietly left out. Keys that nobody knows are passed
over, as clients send many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from llmctl.errors import ConfigError, IntegrityError
from llmctl.wire import codec
from llmctl.wire.infer import ADD, GENERATE, Order, SamplingSpec, TokenLogprob
from llmctl.worker.infer.chat import ChatTemplate
from llmctl.worker.infer.lines import chat_messages, stop_strings, token_ids
from llmctl.worker.infer.text import Vocabulary

COMPLETION_TOKENS = 16
"""New tokens of a completion that says nothing, as OpenAI has it; a chat may use all the room there is."""

_PASSED_ON = frozenset(field.name for field in fields(SamplingSpec)) - {
    "stop_tokens",
    "logprobs",
    "max_tokens",
}
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""What can be asked for only in this way."""


class RequestError(Exception):
    """A request that can't be answered: HTTP status and OpenAI's error object."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.message, self.status, self.kind = message, status, kind
        self.code: str | None = None
        self.retry_after: int | None = None

    def document(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}}


@dataclass(frozen=True)
class Ask:
    """One request, understood.

    Attributes:
        usage: with `stream`: a last chunk tells the token counts.
    """

    order: Order
    stops: tuple[str, ...]
    chat: bool
    stream: bool
    usage: bool

    @property
    def wants_logprobs(self) -> bool:
        return self.order.sampling.logprobs is not None


@dataclass(frozen=True)
class Model:
    """What requests are read with. `limit`: prompt and answer together, tokens."""

    name: str
    words: Vocabulary
    template: ChatTemplate
    limit: int
    vocab_size: int

    def ask(self, body: Any, *, chat: bool) -> Ask:
        """The request in a body. Raises RequestError."""
        if not isinstance(body, dict):
            raise RequestError("the body must be a JSON object")
        self._check(body)
        try:
            tokens = self._chat_tokens(body) if chat else self._prompt_tokens(body.get("prompt"))
            stops = stop_strings(body.get("stop"))
            sampling = self._sampling(body, chat=chat)
        except (ConfigError, IntegrityError) as error:
            raise RequestError(error.message) from None
        room = self.limit - len(tokens)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; this model takes {self.limit} with the answer"
            )
        options = body.get("stream_options") or {}
        return Ask(
            order=Order(
                op=ADD,
                task=GENERATE,
                tokens=tuple(tokens),
                sampling=replace(sampling, max_tokens=min(sampling.max_tokens, room)),
            ),
            stops=stops,
            chat=chat,
            stream=body.get("stream") is True,
            usage=isinstance(options, dict) and options.get("include_usage") is True,
        )

    def _check(self, body: Mapping[str, Any]) -> None:
        name = body.get("model")
        if name is not None and name != self.name:
            error = RequestError(f"the model {name!r} does not exist; there is {self.name}", status=404)
            error.code = "model_not_found"
            raise error
        for key, allowed in _ONLY.items():
            value = body.get(key)
            if value is not None and value not in allowed:
                raise RequestError(f"`{key}` can't be {value!r} here")

    def _prompt_tokens(self, prompt: Any) -> list[int]:
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if isinstance(prompt, list):
            found = token_ids(prompt, self.vocab_size)
        elif isinstance(prompt, str):
            found = self.words.encode(prompt)
        else:
            raise ConfigError("`prompt` must be text, or a list of token ids")
        if not found:
            raise ConfigError("`prompt` is empty")
        return found

    def _chat_tokens(self, body: Mapping[str, Any]) -> list[int]:
        more = body.get("chat_template_kwargs")
        extra = more if isinstance(more, dict) else {}
        text = self.template.render(chat_messages(body.get("messages")), **extra)
        return self.words.encode(text, special=False)

    def _sampling(self, body: Mapping[str, Any], *, chat: bool) -> SamplingSpec:
        given = {key: body[key] for key in _PASSED_ON if body.get(key) is not None}
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        default = self.limit if chat else COMPLETION_TOKENS
        document = {
            "temperature": 1.0,
            **given,
            "max_tokens": default if limit is None else limit,
            "logprobs": _logprobs(body, chat=chat),
            "stop_tokens": list(self.words.ends),
        }
        sampling = codec.decode(SamplingSpec, document)
        sampling.check()
        return sampling


def _logprobs(body: Mapping[str, Any], *, chat: bool) -> int | None:
    """How many alternatives per token; None: no log-probabilities. Chats say it in two keys."""
    wanted = body.get("logprobs")
    if not chat:
        return wanted
    top = body.get("top_logprobs")
    if wanted is not True:
        if top:
            raise ConfigError("`top_logprobs` needs `logprobs: true`")
        return None
    return top or 0


# --- answers ---


@dataclass(frozen=True)
class Reply:
    """Makes the documents of one answer. `id`: its name; `created`: Unix time."""

    id: str
    created: int
    model: str
    ask: Ask
    words: Vocabulary

    def whole(
        self, text: str, logprobs: Sequence[TokenLogprob], finish: str, completion_tokens: int
    ) -> dict[str, Any]:
        """The answer in one document."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": self._probs(logprobs)}
        if self.ask.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.ask.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": self._usage(completion_tokens)}

    def first_chunk(self) -> dict[str, Any] | None:
        """A chat begins with who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None, ()) if self.ask.chat else None

    def chunk(self, text: str, logprobs: Sequence[TokenLogprob], finish: str | None) -> dict[str, Any]:
        """A piece of the answer."""
        if not self.ask.chat:
            choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": self._probs(logprobs)}
            return {**self._head("text_completion"), "choices": [choice]}
        return self._chunk({"content": text} if text else {}, finish, logprobs)

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any]:
        """The last one, where it was asked for."""
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self._usage(completion_tokens)}

    def _chunk(
        self, delta: dict[str, Any], finish: str | None, logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": self._probs(logprobs)}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        prompt = len(self.ask.order.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
        }

    def _probs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.ask.wants_logprobs or not logprobs:
            return None
        if self.ask.chat:
            return {"content": [self._chat_prob(one) for one in logprobs], "refusal": None}
        texts = [self.words.token_text(one.token) for one in logprobs]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [
                {self.words.token_text(t): p for t, p in zip(one.top_tokens, one.top_logprobs, strict=True)}
                for one in logprobs
            ],
            "text_offset": [sum(map(len, texts[:number])) for number in range(len(texts))],
        }

    def _chat_prob(self, one: TokenLogprob) -> dict[str, Any]:
        top = zip(one.top_tokens, one.top_logprobs, strict=True)
        return {**self._prob(one.token, one.logprob), "top_logprobs": [self._prob(t, p) for t, p in top]}

    def _prob(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.words.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
