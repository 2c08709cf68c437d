"""One optimizer step: micro-batches, exact gradient sums, clipping, update. Knows no file and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.worker.optim import AdamW, clip_factor, global_norm
from llmctl.worker.parallel.replicas import sum_async


class Gradients(Protocol):
    """What a layout offers to a step; `parallel/replicas.py` is the first one."""

    def clear(self) -> None:
        """Forget the step before."""

    def expect_last(self) -> None:
        """The next backward pass is the step's last one."""

    def send_rest(self) -> None:
        """Start every sum that is not under way yet."""

    def wait(self) -> list[Tensor]:
        """The summed gradients, each exactly once."""


class Precision(Protocol):
    """Makes the context in which the forward pass runs."""

    def autocast(self) -> AbstractContextManager[object]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """This rank's share of one step: token ids [samples, sequence_length], int64, on the device."""

    inputs: Tensor
    targets: Tensor


class StepResult:
    """What a step left on the device: [loss sum, tokens, stop votes, gradient norm], the same on all ranks.

    It travels to the host beside the work that follows, so that reading it a step later waits for nothing.
    """

    def __init__(self, values: Tensor) -> None:
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
        loss_sum, tokens, stop_votes, norm = self._host.tolist()
        return StepNumbers(
            loss=loss_sum / tokens, tokens=int(tokens), grad_norm=norm, stop_asked=stop_votes > 0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers:
    """`loss` is the mean over the tokens of the global batch, in nats; `grad_norm` is before clipping."""

    loss: float
    tokens: int
    grad_norm: float
    stop_asked: bool


class Stepper:
    """Runs steps of one model. All ranks call `run` for the same steps, with samples of their own or not."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: AdamW,
        gradients: Gradients,
        precision: Precision,
        micro_batch: int,
        world: int,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._gradients = gradients
        self._precision = precision
        self._micro_batch = micro_batch
        self._world = world

    def run(self, batch: Batch, *, lr: float, stop_asked: bool = False) -> StepResult:
        """One step over the global batch of which `batch` is this rank's share.

        The update is left out, on all ranks alike, where the gradient is not finite: the weights stay good.
        """
        totals = torch.zeros(3, dtype=torch.float64, device=batch.inputs.device)
        self._gradients.clear()
        self._backward(batch, totals)
        totals[1] += batch.targets.numel()
        totals[2] += float(stop_asked)
        self._gradients.send_rest()
        # Only now: ranks that differ in samples must still start their collectives in one order.
        work = sum_async(totals) if self._world > 1 else None
        summed = self._gradients.wait()
        if work is not None:
            work.wait()
        tokens = totals[1].float()
        norm = global_norm(summed) / tokens
        self._optimizer.step(
            lr,
            divisor=tokens / clip_factor(norm, self._optimizer.spec.clip_norm),
            skip=(~torch.isfinite(norm)).float(),
        )
        return StepResult(torch.cat((totals, norm.double().view(1))))

    def _backward(self, batch: Batch, totals: Tensor) -> None:
        pieces = micro_batches(batch, self._micro_batch)
        for index, piece in enumerate(pieces):
            if index == len(pieces) - 1:
                self._gradients.expect_last()
            loss = self._loss_sum(piece)
            loss.backward()  # type: ignore[no-untyped-call]
            totals[0] += loss.detach()

    def _loss_sum(self, batch: Batch) -> Tensor:
        with self._precision.autocast():
            logits = self._model(batch.inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="sum")


def micro_batches(batch: Batch, size: int) -> Sequence[Batch]:
    """The batch in pieces of at most `size` samples; none where it is empty."""
    samples = len(batch.inputs)
    return [
        Batch(inputs=batch.inputs[start : start + size], targets=batch.targets[start : start + size])
        for start in range(0, samples, size)
    ]
