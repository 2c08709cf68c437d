"""The training loop: steps, their numbers, checkpoints, and the end, asked for or reached."""

from __future__ import annotations

import os
import time
from collections import deque

from llmctl.wire import environment
from llmctl.wire.metrics import StepLine
from llmctl.worker.badloss import BadLoss
from llmctl.worker.checkpoint.state import random_tensors, training_tensors
from llmctl.worker.metrics import memory_text, peak_memory
from llmctl.worker.optim import lr_at
from llmctl.worker.pace import Pace
from llmctl.worker.step import StepNumbers
from llmctl.worker.stop import EXIT_CODE, stop_order
from llmctl.worker.trainer import Pending, Training

MARGIN_S = 1.0
"""Of the time that a stop leaves, for everything but a checkpoint."""


def run(training: Training) -> int:
    """Train to the end; returns the exit code. Raises as `Loop.run`."""
    return finish(Loop(training))


def finish(loop: Loop) -> int:
    """Take the steps that are left, end in order, and say what memory it took; returns the exit code."""
    code = loop.run()
    training, job = loop.training, loop.training.job
    training.batches.close()
    peaks = job.session.gather(peak_memory(job.session.device))
    job.metrics.note(memory_text(job.recipe.planned_memory, peaks))
    return code


class Loop:
    """Runs a Training to its last step, or to a SIGTERM."""

    def __init__(self, training: Training) -> None:
        self._t = training
        self._pending: deque[Pending] = deque()
        # A GPU works on the next step while the numbers of the one before travel to the host.
        self._lag = 1 if training.job.session.device.type == "cuda" else 0
        self._batches = iter(training.batches)
        self._bad = BadLoss(training.job.recipe, training.batches.samples_of, training.job.metrics.note)
        self._done = training.done
        self._stopping = False
        self._saved_step = training.done
        self._clock = time.monotonic()
        self._pace = Pace.of_rank(training.job.session.rank)

    @property
    def training(self) -> Training:
        return self._t

    @property
    def done(self) -> int:
        """Steps that lie behind, those before a resume included."""
        return self._done

    @property
    def goes_on(self) -> bool:
        """Steps are left, and no rank has been asked to end."""
        return self._done < self._t.job.recipe.steps and not self._stopping

    def save(self) -> None:
        """Save the state after the last step, unless that is done."""
        self._save(self._done, last=self._done == self._t.job.recipe.steps)

    def run(self) -> int:
        """Train. Returns the exit code: 0, or 143 where SIGTERM ended it before the last step.

        Raises:
            JobFailedError: the loss is not a number any more.
            LlmctlError: data or the last checkpoint failed.
        """
        try:
            return self._run()
        finally:
            self._t.saver.close()

    def _run(self) -> int:
        steps = self._t.job.recipe.steps
        self._clock = time.monotonic()
        while self.goes_on:
            self.advance()
        self._report(0)
        if self._stopping:
            self._end_early()
        else:
            self._save(self._done, last=True)
            with self._pace.saving():
                self._t.saver.finish()
        if self._t.consumption is not None:
            self._t.consumption.close()
        return EXIT_CODE if self._stopping and self._done < steps else 0

    def advance(self) -> None:
        """Train one step, write down its numbers, and save a checkpoint where one is due."""
        recipe = self._t.job.recipe
        batch = next(self._batches)
        step = self._done = self._done + 1
        lr = lr_at(step, recipe.optimizer, recipe.steps)
        stop_asked, limit = self._stop_wanted, self._bad.limit
        result = self._t.stepper.run(batch, lr=lr, stop_asked=stop_asked, loss_limit=limit)
        if self._t.consumption is not None:
            self._t.consumption.add(step - 1, self._t.batches.taken.refs)
        self._pending.append(Pending(step=step, lr=lr, wait_s=self._t.batches.wait_s, result=result))
        self._report(self._lag)
        if step == self._t.done + 1:
            self._t.saver.warm_up(training_tensors(self._t.model, self._t.optimizer))
        if recipe.checkpoint_every and step % recipe.checkpoint_every == 0:
            self._save(step, last=step == recipe.steps)

    @property
    def _stop_wanted(self) -> bool:
        return self._t.job.stop.asked or self._t.saver.must_stop

    def _report(self, keep: int) -> None:
        """Read and write down the numbers of all but the last `keep` steps."""
        while len(self._pending) > keep:
            pending = self._pending.popleft()
            numbers = pending.result.read()
            self._write_line(pending, numbers)
            self._stopping = self._stopping or numbers.stop_asked
            self._bad.judge(pending.step, numbers)

    def _write_line(self, pending: Pending, numbers: StepNumbers) -> None:
        now = time.monotonic()
        took = max(now - self._clock, 1e-9)
        self._clock = now
        recipe, step = self._t.job.recipe, pending.step
        line = StepLine(
            t=time.time(),
            step=step,
            total=recipe.steps,
            loss=numbers.loss,
            lr=pending.lr,
            grad_norm=numbers.grad_norm,
            tokens=numbers.tokens,
            tokens_per_s=numbers.tokens / took,
            data_wait=min(1.0, pending.wait_s / took),
            memory_bytes=peak_memory(self._t.job.session.device),
        )
        own_s = numbers.own_s + pending.wait_s
        self._pace.step(step, recipe.steps, took_s=took, own_s=own_s, data_s=pending.wait_s)
        is_edge = step == recipe.steps or step == self._t.done + 1
        self._t.job.metrics.step(line, log=is_edge or step % recipe.log_every == 0)

    def _save(self, step: int, *, last: bool) -> None:
        """Save the state after `step`, once."""
        if step == self._saved_step:
            return
        self._report(0)
        if self._t.consumption is not None:
            self._t.consumption.commit()
        session = self._t.job.session
        tensors = training_tensors(self._t.model, self._t.optimizer)
        with self._pace.saving():
            self._t.saver.save(step, tensors, random_tensors(session.rank, session.device), last=last)
        self._saved_step = step
        self._clock = time.monotonic()

    def _end_early(self) -> None:
        """Keep the progress as far as the grace time allows; the same on all ranks.

        Raises:
            LlmctlError: a checkpoint could not be saved, and the job wants to end then.
        """
        saver, stop = self._t.saver, self._t.job.stop
        order = stop_order(os.environ.get(environment.RUN_DIR, ""))
        grace_s = order.grace_s if order else self._t.job.spec.grace_s
        wanted = order is not None and order.checkpoint
        mine = (stop.seconds_since() - grace_s, *saver.expected_s(), saver.must_stop, wanted)
        told = self._t.job.session.gather(mine)
        late, pending_s, save_s, must_stop, wanted = (max(values) for values in zip(*told, strict=True))
        left = -late
        if must_stop:
            saver.finish()
        if wanted or pending_s + 1.5 * save_s < left:
            self._save(self._done, last=True)
            with self._pace.saving():
                saver.finish()
        elif not saver.settle(max(0.0, left - MARGIN_S)):
            self._t.job.metrics.note("time is up: the checkpoint that was under way is not committed")
