"""One optimizer step: micro-batches, exact gradient sums, clipping, update. Knows no file and no clock."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from llmctl.worker.objective import IGNORE, Loss
from llmctl.worker.optim import AdamW, clip_factor
from llmctl.worker.parallel.replicas import sum_async
from llmctl.worker.stopwatch import Stopwatch


class Gradients(Protocol):
    """What a layout offers to a step; `parallel/replicas.py` is the first one."""

    def clear(self) -> None:
        """Forget the step before."""

    def expect_last(self) -> None:
        """The next backward pass is the step's last one."""

    def send_rest(self) -> None:
        """Start every sum that is not under way yet."""

    def wait(self) -> Tensor:
        """Wait for the sums; returns the norm of the whole model's gradient, the same on all ranks."""


class Runner(Protocol):
    """The forward and backward passes of one step over this rank's share."""

    def run(self, batch: Batch) -> Tensor:
        """Accumulate gradients; returns the loss sum, zero where this rank does not compute one."""


class Precision(Protocol):
    """Makes the context in which the forward pass runs."""

    def autocast(self) -> AbstractContextManager[object]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """This rank's share of one step, on the device; the first dimension counts samples.

    Attributes:
        inputs, targets: of the recipe, token ids [samples, sequence_length], int64.
        samples: each sample's position in the stream of all samples, int64 on the CPU; None: no dropout.
    """

    inputs: Tensor
    targets: Tensor
    samples: Tensor | None = None


class StepResult:
    """What a step left on the device, the same on all ranks: [loss sum, weight, stop votes, tokens, gradient
    norm, 1 where the update was left out].

    It travels to the host beside the work that follows, so that reading it a step later waits for nothing.
    """

    def __init__(self, values: Tensor, own_work: Stopwatch | None = None) -> None:
        self._own_work = own_work
        self._ready: torch.cuda.Event | None = None
        self._host = values
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def read(self) -> StepNumbers:
        """The numbers, once the device has come so far."""
        if self._ready is not None:
            self._ready.synchronize()
        loss_sum, weight, stop_votes, tokens, norm, skipped = self._host.tolist()
        return StepNumbers(
            loss=loss_sum / weight,
            tokens=int(tokens),
            grad_norm=norm,
            stop_asked=stop_votes > 0,
            skipped=skipped > 0,
            own_s=self._own_work.seconds() if self._own_work else 0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers:
    """`loss` is the mean over the global batch, in nats; `grad_norm` is before clipping; `skipped`: the
    update was left out; `own_s`: seconds of this rank's own work before it waited for the others' sums."""

    loss: float
    tokens: int
    grad_norm: float
    stop_asked: bool
    skipped: bool = False
    own_s: float = 0.0


class PlainRunner:
    """One micro-batch after the other through a whole model, or through this rank's shard of one.

    Args:
        passes: forward passes that every rank must make, because each is a collective of its own; a rank
            that runs out of samples goes on with targets that count for nothing. 0: as many as it has.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        gradients: Gradients,
        precision: Precision,
        objective: Loss,
        micro_batch: int,
        passes: int = 0,
    ) -> None:
        self._model = model
        self._gradients = gradients
        self._precision = precision
        self._objective = objective
        self._micro_batch = micro_batch
        self._passes = passes

    def run(self, batch: Batch) -> Tensor:
        """See Runner."""
        total = torch.zeros((), dtype=torch.float64, device=batch.inputs.device)
        pieces = micro_batches(batch, self._micro_batch)
        pieces += [padding(batch, 1)] * (self._passes - len(pieces))
        for index, piece in enumerate(pieces):
            if index == len(pieces) - 1:
                self._gradients.expect_last()
            loss = self._loss_sum(piece)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss_sum(self, piece: Batch) -> Tensor:
        with self._precision.autocast():
            more = {} if piece.samples is None else {"samples": piece.samples}
            outputs = self._model(piece.inputs, **more)
        return self._objective(outputs, piece.targets)


class Stepper:
    """Runs steps of one model. All ranks call `run` for the same steps, with samples of their own or not.

    Args:
        counts: this rank's loss and tokens enter the sums; tp and pp peers work on the same samples.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        optimizer: AdamW,
        gradients: Gradients,
        objective: Loss,
        world: int,
        counts: bool = True,
    ) -> None:
        self._runner = runner
        self._optimizer = optimizer
        self._gradients = gradients
        self._objective = objective
        self._world = world
        self._counts = counts

    def run(
        self, batch: Batch, *, lr: float, stop_asked: bool = False, loss_limit: float | None = None
    ) -> StepResult:
        """One step over the global batch of which `batch` is this rank's share.

        The update is left out, on all ranks alike, where the gradient is not finite or the loss is above
        `loss_limit`: the weights stay good.
        """
        own_work = Stopwatch(batch.inputs.device)
        totals, norm = self.accumulate(batch, stop_asked=stop_asked, own_work=own_work)
        weight = totals[1].float()
        norm = norm / weight
        skip = ~torch.isfinite(norm)
        if loss_limit is not None:
            skip = skip | (totals[0] / totals[1] > loss_limit)
        self._optimizer.step(
            lr, divisor=weight / clip_factor(norm, self._optimizer.spec.clip_norm), skip=skip.float()
        )
        return StepResult(torch.cat((totals, norm.double().view(1), skip.double().view(1))), own_work)

    def accumulate(
        self, batch: Batch, *, stop_asked: bool = False, own_work: Stopwatch | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradient sums over the global batch, in `.grad`: ([loss sum, weight, stop votes, tokens], the norm
        of the sums), all fp64 or fp32 on the device and the same on all ranks."""
        if own_work is not None:
            own_work.start()
        totals = torch.zeros(4, dtype=torch.float64, device=batch.inputs.device)
        self._gradients.clear()
        weight, tokens = self._objective.begin(batch.targets)
        loss = self._runner.run(batch)
        if self._counts:
            totals[0] += loss
            totals[1] += weight
            totals[3] += tokens
        totals[2] += float(stop_asked)
        self._gradients.send_rest()
        # Only now: ranks that differ in samples must still start their collectives in one order.
        work = sum_async(totals) if self._world > 1 else None
        if own_work is not None:
            own_work.stop()
        norm = self._gradients.wait()
        if work is not None:
            work.wait()
        return totals, norm


def micro_batches(batch: Batch, size: int) -> list[Batch]:
    """The batch in pieces of at most `size` samples; none where it is empty."""
    return [cut(batch, start, start + size) for start in range(0, len(batch.inputs), size)]


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Samples `start` to `stop` of `batch`."""
    samples = None if batch.samples is None else batch.samples[start:stop]
    return Batch(inputs=batch.inputs[start:stop], targets=batch.targets[start:stop], samples=samples)


def padding(batch: Batch, count: int) -> Batch:
    """`count` samples of the form of those in `batch`, which need not have any, that count for nothing."""
    inputs = batch.inputs.new_zeros((count, *batch.inputs.shape[1:]))
    targets = batch.targets.new_full((count, *batch.targets.shape[1:]), IGNORE)
    samples = None if batch.samples is None else torch.zeros(count, dtype=torch.int64)
    return Batch(inputs=inputs, targets=targets, samples=samples)
