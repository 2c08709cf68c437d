"""What a step minimises: a sum of losses over this rank's share, and the weight that the sum is divided by.

Every rank back-propagates a sum; sums and weights are added over the ranks, and the optimizer divides once.
So no cut into ranks, micro-batches or pipeline pieces can change the result.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from llmctl.errors import ConfigError
from llmctl.worker.model.decoder import wide

IGNORE = -100
"""A target that counts for nothing: padding, and micro-batches that only keep ranks in step."""

AGGREGATIONS = ("tokens", "samples", "mean")


class Loss(Protocol):
    """What a step needs of a loss."""

    def begin(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Look at this rank's whole share of a step; (its weight, how much of what `status` counts)."""

    def __call__(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """The loss sum of one micro-batch; targets that are IGNORE throughout count for nothing."""


class Objective:
    """Cross-entropy under one aggregation.

    `tokens`: the mean over all tokens. `samples`: the mean over samples of each one's own mean. `mean`: the
    mean over data ranks of each one's own mean, which depends on the layout: what plain DDP computes.

    Args:
        loss_parallel: logits that are a DTensor stay split over the vocabulary; torch's `loss_parallel()`
            must be active around the forward and the backward pass.
    """

    def __init__(self, aggregation: str = "tokens", *, loss_parallel: bool = False) -> None:
        if aggregation not in AGGREGATIONS:
            raise ConfigError(
                f"recipe.aggregation: {aggregation!r} is not one of {', '.join(AGGREGATIONS)}", stage="recipe"
            )
        self._aggregation = aggregation
        self._loss_parallel = loss_parallel
        self._scale: Tensor | None = None

    def begin(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Look at this rank's whole share of a step; returns (its weight, its tokens) as scalars.

        Args:
            targets: [samples, positions], IGNORE where nothing is to be learned.
        """
        counted = targets != IGNORE
        tokens = counted.sum()
        if self._aggregation == "tokens":
            return tokens, tokens
        if self._aggregation == "samples":
            return counted.any(dim=1).sum(), tokens
        self._scale = 1.0 / tokens.clamp(min=1).float()
        return (tokens > 0).long(), tokens

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss sum of one micro-batch: [samples, positions, vocabulary] against [samples, positions]."""
        flat = wide(logits if self._loss_parallel else whole(logits)).flatten(0, 1)
        if self._aggregation == "samples":
            return self._by_sample(flat, targets)
        total = whole(F.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=IGNORE))
        return total if self._scale is None else total * self._scale

    def _by_sample(self, flat: Tensor, targets: Tensor) -> Tensor:
        losses = whole(F.cross_entropy(flat, targets.flatten(), reduction="none", ignore_index=IGNORE))
        lengths = (targets != IGNORE).sum(dim=1).clamp(min=1)
        return (losses.view_as(targets).sum(dim=1) / lengths).sum()


def whole(tensor: Tensor) -> Tensor:
    """A DTensor that every rank holds alike as the plain tensor that it is; any other tensor itself."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    plain: Tensor = tensor.full_tensor()
    return plain
