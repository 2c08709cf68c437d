"""Who is worked on next: requests wait, get a slot of the cache, feed their prompt, decode, and leave.

Pure: orders and outcomes in, steps and answers out; no clock, no tensor arithmetic, no network.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from llmctl.wire.infer import (
    CANCELLED,
    EMBED,
    ERROR,
    LENGTH,
    SCORE,
    STOP,
    Answer,
    Order,
    ReplicaStats,
    TokenLogprob,
)
from llmctl.worker.infer.admission import refusal
from llmctl.worker.infer.engine import plan
from llmctl.worker.infer.engine.plan import POOL, POOL_LAST, SAMPLE, Step, make_step
from llmctl.worker.infer.engine.sampler import Outcome

Key = Hashable
"""Names a request in here; two connections may use the same id."""

Told = tuple[Key, Answer]


@dataclass(slots=True, kw_only=True)
class Sequence:
    """One request that has a slot.

    Attributes:
        known: prompt and answer so far; the first `fed` of them are in the cache, or on the way there.
        flying: outputs of it are wanted of a step that is on its way.
    """

    key: Key
    order: Order
    slot: int
    seed: int
    known: list[int]
    fed: int = 0
    flying: bool = False
    cancelled: bool = False
    scores: list[float] = field(default_factory=list)

    @property
    def new(self) -> int:
        return len(self.known) - len(self.order.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes that bound the memory: see ReplicaSpec.

    Attributes:
        groups: micro-batches in flight at once; slots are shared among them.
    """

    slots: int
    length: int
    chunk: int
    waiting: int
    vocab: int
    groups: int = 1


class Scheduler:
    """Slot s belongs to group s % groups; a group has at most one step on its way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[tuple[Key, Order]] = deque()
        self._running: list[list[Sequence]] = [[] for _ in range(limits.groups)]
        self._free = [list(range(group, limits.slots, limits.groups)) for group in range(limits.groups)]
        # Per group: who an output of the step on its way belongs to.
        self._owners: list[list[Sequence]] = [[] for _ in range(limits.groups)]
        self._draining = False
        self._prompt_tokens = self._new_tokens = self._steps = 0

    def add(self, key: Key, order: Order) -> Answer | None:
        """Take a request; an Answer: it was refused, or there is nothing to compute."""
        refusal = self._refusal(order)
        if refusal is not None:
            return Answer(id=order.id, finish=ERROR, error=refusal)
        if order.task == SCORE and len(order.tokens) == 1:
            return Answer(id=order.id, finish=STOP)
        self._waiting.append((key, order))
        return None

    def _refusal(self, order: Order) -> str | None:
        limits = self._limits
        return refusal(
            order,
            length=limits.length,
            vocab=limits.vocab,
            waiting=len(self._waiting),
            most_waiting=limits.waiting,
            draining=self._draining,
        )

    def cancel(self, key: Key) -> list[Told]:
        """End a request; what is on its way is dropped when it comes back."""
        for waiting in self._waiting:
            if waiting[0] == key:
                self._waiting.remove(waiting)
                return [(key, Answer(id=waiting[1].id, finish=CANCELLED))]
        for running in self._running:
            for sequence in running:
                if sequence.key == key and not sequence.cancelled:
                    sequence.cancelled = True
                    return [] if sequence.flying else [self._leave(sequence, CANCELLED)]
        return []

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._draining = True

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._waiting and not any(self._running)

    @property
    def draining(self) -> bool:
        return self._draining

    def stats(self) -> ReplicaStats:
        """At this moment."""
        free = sum(len(slots) for slots in self._free)
        return ReplicaStats(
            slots=self._limits.slots,
            free=free,
            waiting=len(self._waiting),
            running=self._limits.slots - free,
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._new_tokens,
            steps=self._steps,
            draining=self._draining,
        )

    def step(self, group: int) -> Step | None:
        """The next step of a group whose last one has come back; None: it has nothing to do."""
        self._admit()
        self._owners[group] = []
        making = _Making()
        running = self._running[group]
        for sequence in running:
            if len(sequence.known) - sequence.fed == 1 and sequence.new > 0:
                self._feed(sequence, 1, making)
        budget = self._limits.chunk
        for sequence in running:
            count = min(budget, len(sequence.known) - sequence.fed)
            if count > 0 and sequence.new == 0:
                self._prompt_tokens += count
                self._feed(sequence, count, making)
                budget -= count
        if not making.rows:
            return None
        self._owners[group] = making.owners
        self._steps += 1
        return make_step(group, making.rows, making.outputs, making.numbers)

    def _admit(self) -> None:
        """Give slots to those that wait, in the emptiest group first."""
        while self._waiting:
            group = max(range(self._limits.groups), key=lambda index: len(self._free[index]))
            if not self._free[group]:
                return
            key, order = self._waiting.popleft()
            seed = order.sampling.seed
            self._running[group].append(
                Sequence(
                    key=key,
                    order=order,
                    slot=self._free[group].pop(0),
                    seed=secrets.randbits(63) if seed is None else seed,
                    known=list(order.tokens),
                )
            )

    def _feed(self, sequence: Sequence, count: int, making: _Making) -> None:
        first = len(making.rows)
        for position in range(sequence.fed, sequence.fed + count):
            making.rows.append((sequence.known[position], sequence.slot, position))
        for offset, output, numbers in _outputs(sequence, count):
            making.outputs.append((first + offset, *output))
            making.numbers.append(numbers)
            making.owners.append(sequence)
        sequence.fed += count
        sequence.flying = True

    def apply(self, step: Step, outcome: Outcome) -> list[Told]:
        """What came back for the group's step: answers, and slots that are free again."""
        values = outcome.values.tolist()
        means = iter(outcome.means.tolist())
        answers: list[Told] = []
        for sequence in self._running[step.group]:
            sequence.flying = False
        for sequence, kind, row, output in zip(
            self._owners[step.group],
            step.outputs[:, plan.KIND].tolist(),
            values,
            step.outputs[:, plan.ALTERNATIVES].tolist(),
            strict=True,
        ):
            mean = next(means) if kind == POOL_LAST else None
            if not sequence.cancelled:
                answers += self._outcome(sequence, kind, row, output, mean)
        for sequence in [one for one in self._running[step.group] if one.cancelled]:
            answers.append(self._leave(sequence, CANCELLED))
        return answers

    def _outcome(
        self, sequence: Sequence, kind: int, row: list[float], alternatives: int, mean: list[float] | None
    ) -> Iterator[Told]:
        if kind == SAMPLE:
            yield self._token(sequence, row, alternatives)
        elif kind == plan.SCORE:
            sequence.scores.append(row[1])
            if len(sequence.scores) == len(sequence.known) - 1:
                yield self._leave(sequence, STOP, scores=tuple(sequence.scores))
        elif mean is not None:
            yield self._leave(sequence, STOP, embedding=tuple(mean))

    def _token(self, sequence: Sequence, row: list[float], alternatives: int) -> Told:
        token, sampling = int(row[0]), sequence.order.sampling
        if token in sampling.stop_tokens:
            return self._leave(sequence, STOP)
        self._new_tokens += 1
        sequence.known.append(token)
        logprobs = () if sampling.logprobs is None else (_logprob(row, alternatives),)
        if sequence.new >= sampling.max_tokens or len(sequence.known) >= self._limits.length:
            return self._leave(sequence, LENGTH, tokens=(token,), logprobs=logprobs)
        return sequence.key, Answer(id=sequence.order.id, tokens=(token,), logprobs=logprobs)

    def _leave(
        self,
        sequence: Sequence,
        finish: str,
        *,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        scores: tuple[float, ...] = (),
        embedding: tuple[float, ...] = (),
    ) -> Told:
        group = sequence.slot % self._limits.groups
        self._running[group].remove(sequence)
        self._free[group].append(sequence.slot)
        return sequence.key, Answer(
            id=sequence.order.id,
            tokens=tokens,
            logprobs=logprobs,
            finish=finish,
            scores=scores,
            embedding=embedding,
        )


@dataclass(slots=True)
class _Making:
    """A step while it is put together; `owners` has one entry per output."""

    rows: list[tuple[int, int, int]] = field(default_factory=list)
    outputs: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    numbers: list[tuple[float, float, float, float]] = field(default_factory=list)
    owners: list[Sequence] = field(default_factory=list)


_Output = tuple[int, tuple[int, int, int, int], tuple[float, float, float, float]]
_PLAIN = (0.0, 1.0, 0.0, 1.0)


def _outputs(sequence: Sequence, count: int) -> Iterator[_Output]:
    """(offset from the first row, output without its row, numbers) of what is wanted of the next `count`
    positions."""
    task, last = sequence.order.task, sequence.fed + count == len(sequence.known)
    if task == SCORE:
        for offset in range(count - last):
            target = sequence.known[sequence.fed + offset + 1]
            yield offset, (plan.SCORE, target, 0, 0), _PLAIN
    elif task == EMBED:
        for offset in range(count):
            kind = POOL_LAST if last and offset == count - 1 else POOL
            yield offset, (kind, 0, 0, -1), _PLAIN
    elif last:
        sampling = sequence.order.sampling
        wanted = -1 if sampling.logprobs is None else sampling.logprobs
        uniform = uniform_number(sequence.seed, sequence.new) if sampling.temperature > 0 else 0.0
        numbers = (sampling.temperature, sampling.top_p, uniform, sampling.repetition_penalty)
        yield count - 1, (SAMPLE, 0, sampling.top_k, wanted), numbers


def uniform_number(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on seed and index alone."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def _logprob(row: list[float], alternatives: int) -> TokenLogprob:
    widest = (len(row) - 2) // 2
    return TokenLogprob(
        token=int(row[0]),
        logprob=row[1],
        top_tokens=tuple(int(token) for token in row[2 : 2 + alternatives]),
        top_logprobs=tuple(row[2 + widest : 2 + widest + alternatives]),
    )
