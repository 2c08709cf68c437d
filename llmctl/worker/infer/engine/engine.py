"""Rank 0's loop: hand every group its next step, and tell what came back."""

from __future__ import annotations

from llmctl.wire.infer import CANCEL, DRAIN, STATS, Answer, Order
from llmctl.worker.infer.engine.pipeline import Pending, Pipeline
from llmctl.worker.infer.engine.plan import Step
from llmctl.worker.infer.engine.scheduler import Key, Limits, Scheduler, Told


class Engine:
    """Continuous batching: requests come and go between steps.

    With several groups each has a step on its way, so that every stage of a pipeline has work.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self._pipeline = pipeline
        self._scheduler = Scheduler(limits)
        self._flying: list[tuple[Step, Pending] | None] = [None] * limits.groups

    @property
    def idle(self) -> bool:
        """Nothing to do until the next order."""
        return self._scheduler.idle

    @property
    def draining(self) -> bool:
        """Nothing new is taken."""
        return self._scheduler.draining

    def obey(self, key: Key, order: Order) -> list[Told]:
        """Do what an order says, as far as it can be done at once."""
        if order.op == CANCEL:
            return self._scheduler.cancel(key)
        if order.op == STATS:
            return [(key, Answer(id=order.id, stats=self._scheduler.stats()))]
        if order.op == DRAIN:
            self._scheduler.drain()
            return []
        refused = self._scheduler.add(key, order)
        return [] if refused is None else [(key, refused)]

    def turn(self) -> list[Told]:
        """For every group: what its last step came to, and its next step begun."""
        answers: list[Told] = []
        for group in range(len(self._flying)):
            answers += self._land(group)
            step = self._scheduler.step(group)
            if step is not None:
                self._flying[group] = step, self._pipeline.start(step)
        if len(self._flying) == 1:
            # What is done is told before the next step takes its time.
            answers += self._land(0)
        return answers

    def _land(self, group: int) -> list[Told]:
        flying = self._flying[group]
        self._flying[group] = None
        if flying is None:
            return []
        step, pending = flying
        return self._scheduler.apply(step, pending())

    def alive(self) -> None:
        """Called in long silences."""
        self._pipeline.alive()

    def end(self) -> None:
        """The other ranks may go."""
        self._pipeline.end()
