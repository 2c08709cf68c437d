"""From logits to outcomes: the next token, log-probabilities, and means of hidden states.

A row's outcome depends on that row alone: randomness comes as one number with each output, so that a seeded
answer is the same whatever else is in the batch. What a request has seen is learned from the rows themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.worker.infer.engine.plan import (
    ALTERNATIVES,
    KIND,
    PENALTY,
    POOL,
    POOL_LAST,
    POSITION,
    ROW,
    SAMPLE,
    SLOT,
    TARGET,
    TEMPERATURE,
    TOKEN,
    TOP_K,
    Step,
)

CANDIDATES = 256
"""Likeliest tokens that are looked at first under top_p: they nearly always suffice, and sorting a vocabulary
of 50,000 costs more than a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step came to.

    Attributes:
        values: float64 [O, 2 + 2 A]: token, its log-probability, A likeliest tokens, their log-probabilities;
            nothing of meaning where the output is a POOL.
        means: fp32 [number of POOL_LAST, dim].
    """

    values: Tensor
    means: Tensor


class Sampler:
    """Keeps per slot which tokens it has seen, and the sum of its hidden states."""

    def __init__(self, *, slots: int, vocab: int, dim: int, device: torch.device) -> None:
        self._seen = torch.zeros(slots, vocab, dtype=torch.bool, device=device)
        self._sums = torch.zeros(slots, dim, device=device)
        self._vocab = vocab

    def watch(self, rows: Tensor) -> None:
        """Learn what the requests of a step have seen; before `choose`."""
        fresh = rows[rows[:, POSITION] == 0, SLOT]
        if len(fresh):
            self._seen[fresh] = False
            self._sums[fresh] = 0.0
        self._seen[rows[:, SLOT], rows[:, TOKEN]] = True

    def pool(self, step: Step, hidden: Tensor) -> Tensor:
        """Add the hidden states [O, dim] of POOL outputs; the means of those that end."""
        kinds = step.outputs[:, KIND]
        pooled = (kinds == POOL) | (kinds == POOL_LAST)
        if not bool(pooled.any()):
            return hidden.new_empty(0, hidden.shape[1])
        slots = step.rows[step.outputs[:, ROW], SLOT]
        self._sums.index_add_(0, slots[pooled], hidden[pooled])
        last = kinds == POOL_LAST
        counts = step.rows[step.outputs[last, ROW], POSITION] + 1
        return self._sums[slots[last]] / counts.unsqueeze(1)

    def choose(self, step: Step, logits: Tensor) -> Tensor:
        """`Outcome.values`; logits are fp32 [O, vocab]."""
        outputs, numbers = step.outputs, step.numbers
        sampled = outputs[:, KIND] == SAMPLE
        penalised = sampled & (numbers[:, PENALTY] != 1.0)
        scaled = logits
        if bool(penalised.any()):
            scaled = logits.clone()
            slots = step.rows[outputs[penalised, ROW], SLOT]
            factor = numbers[penalised, PENALTY].float().unsqueeze(1)
            scaled[penalised] = _penalise(logits[penalised], self._seen[slots], factor)
        tokens = torch.where(sampled, scaled.argmax(dim=-1), outputs[:, TARGET])
        for index in torch.nonzero(sampled & (numbers[:, TEMPERATURE] > 0)).flatten().tolist():
            temperature, top_p, uniform, _ = numbers[index].tolist()
            row = scaled[index] / temperature
            tokens[index] = draw(row, int(outputs[index, TOP_K]), top_p, uniform)
        return self._told(step, logits, tokens)

    def _told(self, step: Step, logits: Tensor, tokens: Tensor) -> Tensor:
        """Tokens and log-probabilities; those of the model itself, before temperature and filters."""
        values = torch.zeros(len(tokens), 2 + 2 * step.alternatives, dtype=torch.float64)
        values[:, 0] = tokens
        wanted = (step.outputs[:, ALTERNATIVES] >= 0) & (step.outputs[:, KIND] <= 1)
        if not bool(wanted.any()):
            return values
        picked = logits[wanted]
        total = picked.logsumexp(dim=-1, keepdim=True)
        values[wanted, 1] = (picked.gather(1, tokens[wanted].unsqueeze(1)) - total).squeeze(1).double().cpu()
        if step.alternatives > 0:
            top = picked.topk(step.alternatives, dim=-1)
            both = torch.cat((top.indices.double(), (top.values - total).double()), dim=1)
            values[wanted, 2:] = both.cpu()
        return values


def _penalise(logits: Tensor, seen: Tensor, factor: Tensor) -> Tensor:
    """As transformers does it: seen tokens become less likely, whatever the sign of their logit."""
    lowered = torch.where(logits < 0, logits * factor, logits / factor)
    return torch.where(seen, lowered, logits)


def draw(logits: Tensor, top_k: int, top_p: float, uniform: float) -> int:
    """One token of `logits` [vocab] by the number `uniform` in [0, 1): the inverse of the distribution."""
    if top_k == 0 and top_p >= 1.0:
        return _invert(torch.softmax(logits.double(), dim=-1), uniform)
    count = len(logits) if top_k == 0 else min(top_k, len(logits))
    limited = top_k > 0
    total = logits.logsumexp(dim=-1)
    first = min(count, CANDIDATES) if top_p < 1.0 else count
    values, tokens = logits.topk(first)
    # Under top_k the kept tokens are renormalised first, then top_p cuts: as transformers does it.
    whole = values.logsumexp(dim=-1) if limited and first == count else total
    chances = (values - whole).double().exp()
    if top_p < 1.0 and first < count and (limited or float(chances.sum()) < top_p):
        values, tokens = logits.topk(count)
        whole = values.logsumexp(dim=-1) if limited else total
        chances = (values - whole).double().exp()
    if top_p < 1.0:
        before = chances.cumsum(0) - chances
        chances = chances[: max(1, int((before < top_p).sum()))]
    return int(tokens[_invert(chances, uniform)])


def _invert(chances: Tensor, uniform: float) -> int:
    """The first index up to which the chances add up to more than `uniform` of their sum."""
    sums = chances.cumsum(0)
    found = int(torch.searchsorted(sums, uniform * sums[-1], right=True))
    return min(found, len(chances) - 1)
