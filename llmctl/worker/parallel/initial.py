"""First weights of shards: each rank draws whole parameters one by one and keeps its part of each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.decoder import Decoder, first_values
from llmctl.worker.optim import local


@torch.no_grad()
def first_shards(model: Decoder, config: ModelConfig, seed: int, *, learning_only: bool = False) -> None:
    """Fill every parameter with this rank's part of the values that `initialise` gives the whole model.

    With `learning_only`, frozen parameters are left as they are. Needs memory for the largest whole
    parameter, and no communication.
    """
    for name, parameter in model.named_parameters():
        if learning_only and not parameter.requires_grad:
            continue
        if not isinstance(parameter, DTensor):
            first_values(name, parameter, config, seed)
            continue
        mine = local(parameter)
        whole = torch.empty(parameter.shape, dtype=mine.dtype, device=mine.device)
        first_values(name, whole, config, seed)
        mine.copy_(part_of(whole, parameter))


def part_of(whole: Tensor, like: DTensor) -> Tensor:
    """What of `whole` the rank holds that holds its part of `like`, a view."""
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
