"""A loss of your own, weighted by samples: sums over micro-batches and ranks, divided once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmctl.worker.objective import IGNORE

LossSum = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of some samples, [samples, ...] each -> the sum of the samples' losses, a scalar."""


class SampleLoss:
    """See objective.Loss: the mean over the samples of the global batch, however they are cut."""

    def __init__(self, loss: LossSum) -> None:
        self._loss = loss

    def begin(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See Loss."""
        count = _real(targets).sum()
        return count, count

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        real = _real(targets)
        # Autocast's outputs are bf16; a loss is summed in fp32.
        outputs = outputs.float()
        if bool(real.all()):
            return self._loss(outputs, targets)
        if not bool(real.any()):
            # Keeps the graph: every rank must make its backward pass.
            return outputs.sum() * 0.0
        return self._loss(outputs[real], targets[real])


def _real(targets: Tensor) -> Tensor:
    """Which samples are no padding."""
    flat = targets.reshape(len(targets), -1) if len(targets) else targets.new_zeros((0, 1))
    found: Tensor = torch.any(flat != IGNORE, dim=1)
    return found
