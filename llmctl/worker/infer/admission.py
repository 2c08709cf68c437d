"""PURE: whether a replica takes an order, the same for every engine."""

from __future__ import annotations

from llmctl.wire.infer import GENERATE, Order


def refusal(
    order: Order, *, length: int, vocab: int, waiting: int, most_waiting: int, draining: bool
) -> str | None:
    """Why it is refused; None: it is taken.

    Args:
        length: positions of a request, prompt and answer together. vocab: ids are below it.
    """
    longest = length - (order.task == GENERATE)
    if draining:
        return "draining: nothing new is taken"
    if waiting >= most_waiting:
        return f"busy: {waiting} requests wait already"
    if not order.tokens:
        return "no tokens"
    if len(order.tokens) > longest:
        return f"too long: {len(order.tokens)} tokens, {longest} fit"
    wrong = next((token for token in order.tokens if not 0 <= token < vocab), None)
    return None if wrong is None else f"token {wrong} is not in the vocabulary of {vocab}"
