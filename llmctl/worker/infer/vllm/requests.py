"""PURE: an order as a request of vLLM's completion API, and what comes back as answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.errors import IntegrityError
from llmctl.wire.infer import ERROR, LENGTH, SCORE, STOP, Answer, Order, TokenLogprob

LOWEST = -9999.0
"""What vLLM writes for minus infinity."""
_FINISHES = {"stop": STOP, "length": LENGTH}
_TOKEN = "token_id:"  # noqa: S105 - how vLLM writes an id where a text could stand


def body(order: Order, *, limit: int) -> dict[str, Any]:
    """The JSON document to send. `limit`: prompt and answer together."""
    if order.task == SCORE:
        return {"prompt": list(order.tokens), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    sampling = order.sampling
    found: dict[str, Any] = {
        "prompt": list(order.tokens),
        "max_tokens": min(sampling.max_tokens, limit - len(order.tokens)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(sampling.stop_tokens),
        "ignore_eos": True,  # `stop_token_ids` has every end that the front knows, and no other is one
        "return_token_ids": True,
        "skip_special_tokens": False,
        "stream": True,
    }
    if sampling.seed is not None:
        found["seed"] = _signed(sampling.seed)
    if sampling.logprobs is not None:
        found |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    return found


def _signed(seed: int) -> int:
    """Within 64 bits with a sign, which is what vLLM takes; different seeds stay different up to there."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def streamed(order: Order, document: Mapping[str, Any]) -> Answer | None:
    """One event of a stream as an answer; None: it holds nothing.

    Raises:
        IntegrityError: it is none of vLLM's.
    """
    if "error" in document:
        return Answer(id=order.id, finish=ERROR, error=problem(document))
    choices = document.get("choices")
    if not choices:
        return None
    choice = choices[0]
    tokens, finish = _tokens(choice), choice.get("finish_reason")
    logprobs = _logprobs(order, tokens, choice.get("logprobs"))
    if finish == STOP and tokens and tokens[-1] in order.sampling.stop_tokens:
        tokens, logprobs = tokens[:-1], logprobs[:-1]
    if finish is not None and finish not in _FINISHES:
        return Answer(id=order.id, finish=ERROR, error=f"vLLM ended it: {finish}")
    if not tokens and finish is None:
        return None
    return Answer(id=order.id, tokens=tokens, logprobs=logprobs, finish=_FINISHES.get(finish))


def _tokens(choice: Mapping[str, Any]) -> tuple[int, ...]:
    found = choice.get("token_ids")
    if found is None and choice.get("text"):
        raise IntegrityError("vLLM sent text without token ids", hint="a newer vLLM sends them")
    return tuple(found or ())


def _logprobs(
    order: Order, tokens: Sequence[int], given: Mapping[str, Any] | None
) -> tuple[TokenLogprob, ...]:
    wanted = order.sampling.logprobs
    if wanted is None or given is None:
        return ()
    tops = given.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        _logprob(token, value, top or {}, wanted)
        for token, value, top in zip(tokens, given["token_logprobs"], tops, strict=True)
    )


def _logprob(token: int, value: float | None, top: Mapping[str, float], wanted: int) -> TokenLogprob:
    """vLLM's alternatives begin with the chosen token, likeliest or not."""
    ordered = sorted(top.items(), key=lambda entry: -entry[1])[:wanted]
    return TokenLogprob(
        token=token,
        logprob=LOWEST if value is None else value,
        top_tokens=tuple(int(name.removeprefix(_TOKEN)) for name, _ in ordered),
        top_logprobs=tuple(number for _, number in ordered),
    )


def scored(order: Order, document: Mapping[str, Any]) -> Answer:
    """The whole answer to `score`: the log-probability of every token but the first.

    Raises:
        IntegrityError: it is none of vLLM's.
    """
    try:
        found = document["choices"][0]["prompt_logprobs"]
        pairs = zip(order.tokens[1:], found[1:], strict=True)
        scores = tuple(float(entry[str(token)]["logprob"]) for token, entry in pairs)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise IntegrityError(f"vLLM sent no log-probabilities of the prompt: {error!r}") from None
    return Answer(id=order.id, finish=STOP, scores=scores)


def problem(document: Mapping[str, Any]) -> str:
    """What an error document says, one line."""
    found = document.get("error")
    said = found.get("message") if isinstance(found, Mapping) else found
    return " ".join(str(said or "vLLM failed").split())[:400]
