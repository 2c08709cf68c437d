"""The training loop: steps, their numbers, checkpoints, and the end, asked for or reached."""

from __future__ import annotations

import time
from collections import deque

from llmctl.wire.metrics import CheckpointLine, StepLine
from llmctl.worker.badloss import BadLoss
from llmctl.worker.checkpoint.state import random_tensors, training_tensors
from llmctl.worker.metrics import peak_memory
from llmctl.worker.optim import lr_at
from llmctl.worker.step import StepNumbers
from llmctl.worker.stop import EXIT_CODE
from llmctl.worker.trainer import Pending, Training


class Loop:
    """Runs a Training to its last step, or to a SIGTERM."""

    def __init__(self, training: Training) -> None:
        self._t = training
        self._pending: deque[Pending] = deque()
        # A GPU works on the next step while the numbers of the one before travel to the host.
        self._lag = 1 if training.session.device.type == "cuda" else 0
        self._batches = iter(training.batches)
        self._bad = BadLoss(training.recipe, training.batches.samples_of, training.metrics.note)
        self._done = training.done
        self._stopping = False
        self._saved_step = training.done
        self._save_s = 0.0
        self._clock = time.monotonic()

    def run(self) -> int:
        """Train. Returns the exit code: 0, or 143 where SIGTERM ended it before the last step.

        Raises:
            JobFailedError: the loss is not a number any more. LlmctlError: data or checkpoints failed.
        """
        steps = self._t.recipe.steps
        self._clock = time.monotonic()
        while self._done < steps and not self._stopping:
            self.advance()
        self._report(0)
        if not self._stopping or self._has_time():
            self._save(self._done)
        return EXIT_CODE if self._stopping and self._done < steps else 0

    def advance(self) -> None:
        """Train one step, write down its numbers, and save a checkpoint where one is due."""
        recipe = self._t.recipe
        batch = next(self._batches)
        step = self._done = self._done + 1
        lr = lr_at(step, recipe.optimizer, recipe.steps)
        result = self._t.stepper.run(batch, lr=lr, stop_asked=self._t.stop.asked, loss_limit=self._bad.limit)
        self._pending.append(Pending(step=step, lr=lr, wait_s=self._t.batches.wait_s, result=result))
        self._report(self._lag)
        if step == self._t.done + 1:
            self._t.saver.warm_up()
        if recipe.checkpoint_every and step % recipe.checkpoint_every == 0:
            self._save(step)

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
        recipe, step = self._t.recipe, pending.step
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
            memory_bytes=peak_memory(self._t.session.device),
        )
        is_edge = step == recipe.steps or step == self._t.done + 1
        self._t.metrics.step(line, log=is_edge or step % recipe.log_every == 0)

    def _save(self, step: int) -> None:
        """Save the state after `step`, once."""
        if step == self._saved_step:
            return
        self._report(0)
        session = self._t.session
        tensors = training_tensors(self._t.model, self._t.optimizer)
        saved = self._t.saver.save(step, {**tensors, **random_tensors(session.rank, session.device)})
        self._saved_step, self._save_s = step, saved.stalled_s
        self._t.metrics.checkpoint(
            CheckpointLine(
                t=time.time(), step=step, bytes=saved.bytes, stalled_s=saved.stalled_s, uri=saved.uri
            )
        )
        self._clock = time.monotonic()

    def _has_time(self) -> bool:
        """Whether a save fits into the grace that is left; the same answer on all ranks."""
        told = self._t.session.gather((self._t.stop.seconds_since(), self._save_s))
        since, save_s = max(since for since, _ in told), max(save_s for _, save_s in told)
        return since + 1.5 * save_s < self._t.grace_s
