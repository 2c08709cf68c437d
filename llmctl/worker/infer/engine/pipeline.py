"""One rank's work on a step: its stage, and on the last stage the sampling. Alone or with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmctl.worker.infer.engine.links import Links
from llmctl.worker.infer.engine.place import Place, vocab_share
from llmctl.worker.infer.engine.plan import END, KIND, NOTHING, POOL, ROW, Step, empty_step
from llmctl.worker.infer.engine.sampler import Outcome, Sampler
from llmctl.worker.infer.engine.stage import Stage
from llmctl.worker.model.config import ModelConfig

Pending = Callable[[], Outcome]
"""A step on its way: waits for what it comes to."""


class Pipeline(Protocol):
    """What rank 0's engine hands its steps to."""

    def start(self, step: Step) -> Pending:
        """Begin a step; several may be on their way, and they end in order."""

    def alive(self) -> None:
        """Tell the other ranks that this one lives, where there was nothing to do for a while."""

    def end(self) -> None:
        """Tell the other ranks that there will be nothing more."""


@dataclass(slots=True, kw_only=True)
class Rank:
    """One rank: its stage of the model and, on the last stage, the sampler.

    Attributes:
        links: None where it is alone.
    """

    config: ModelConfig
    place: Place
    stage: Stage
    sampler: Sampler
    device: torch.device
    links: Links | None = None

    def work(self, step: Step, x: Tensor | None) -> Tensor:
        """This rank's stage of the step: the residual stream behind it."""
        return self.stage.forward(step.rows.to(self.device), x)

    @torch.inference_mode()
    def outcome(self, step: Step, x: Tensor) -> Outcome | None:
        """Of the last stage's residual stream. All ranks of the stage call it; only the first one samples."""
        hidden = self.stage.final(x[step.outputs[:, ROW].to(x.device)])
        logits = self.logits(step, hidden)
        if self.place.shard > 0:
            return None
        self.sampler.watch(step.rows.to(self.device))
        means = self.sampler.pool(step, hidden)
        return Outcome(values=self.sampler.choose(step, logits), means=means.cpu())

    def logits(self, step: Step, hidden: Tensor) -> Tensor:
        """fp32 [O, vocab]; rows of pooled outputs are zeros, for nobody wants them."""
        wanted = step.outputs[:, KIND] < POOL
        if not bool(wanted.any()):
            return hidden.new_zeros(len(hidden), 1)
        own = self.stage.logits(hidden if bool(wanted.all()) else hidden[wanted])
        if self.links is not None:
            width = vocab_share(self.config.vocab_size, self.place.tp, 0)[1]
            own = self.links.gather_vocab(own, width)[:, : self.config.vocab_size]
        if len(own) == len(hidden):
            return own
        full = own.new_zeros(len(hidden), own.shape[1])
        full[wanted] = own
        return full

    def follow(self) -> None:
        """Work on what rank 0 plans until it says that this was all."""
        assert self.links is not None  # noqa: S101 - a rank that follows is not alone
        while True:
            step = self.links.receive_plan()
            if step.order == END:
                self.links.settle()
                return
            if step.order != NOTHING:
                self._follow(step, self.links)

    def _follow(self, step: Step, links: Links) -> None:
        x = self.work(step, None if self.place.is_first else links.receive_activation(step).to(self.device))
        if not self.place.is_last:
            links.send_activation(x.cpu())
            return
        outcome = self.outcome(step, x)
        if outcome is not None:
            links.send_outcome(outcome)


def _done(outcome: Outcome | None) -> Pending:
    assert outcome is not None  # noqa: S101 - rank 0 is the first of its stage
    return lambda: outcome


class Alone:
    """See Pipeline: one process, one stage."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def start(self, step: Step) -> Pending:
        """See Pipeline; it is done when this returns."""
        return _done(self._rank.outcome(step, self._rank.work(step, None)))

    def alive(self) -> None:
        """Nobody is there to be told."""

    def end(self) -> None:
        """Nobody is there to be told."""


class Leading:
    """See Pipeline: rank 0 of several."""

    def __init__(self, rank: Rank, links: Links) -> None:
        self._rank = rank
        self._links = links

    def start(self, step: Step) -> Pending:
        """See Pipeline; returns when the first stage is done."""
        self._links.send_plan(step)
        x = self._rank.work(step, None)
        if self._rank.place.is_last:
            return _done(self._rank.outcome(step, x))
        self._links.send_activation(x.cpu())
        return lambda: self._links.receive_outcome(step)

    def alive(self) -> None:
        """See Pipeline."""
        self._links.send_plan(empty_step(NOTHING))

    def end(self) -> None:
        """See Pipeline."""
        self._links.send_plan(empty_step(END))
        self._links.settle()
