"""FSDP2: each block's parameters, gradients and moments lie sharded; a block is whole only while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def shard_parameters(
    model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, *, bf16: bool, keep: bool
) -> None:
    """Shard each of `blocks` and what is left of `model` over the last dimension of `mesh`, in place.

    Gradients are summed, not averaged, and in fp32. Inputs are not cast: autocast does that, so that norms
    and the residual stream are fp32 as in any other layout.

    Args:
        mesh: (dp_shard,), or (dp_replicate, dp_shard).
        bf16: gather the blocks' weights as bf16, half the traffic; the shards themselves are fp32 always.
            Not the embedding: its gradient would be added up token by token in bf16.
        keep: leave blocks whole after the forward pass, where a pipeline would gather them for each
            micro-batch again.
    """
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    half = replace(whole, param_dtype=torch.bfloat16) if bf16 else whole
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=half, reshard_after_forward=not keep)
    fully_shard(model, mesh=mesh, mp_policy=whole, reshard_after_forward=not keep)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # On every one of them: a setting on the root alone is silently wrong for all others. And gloo
            # has no sum with a factor, which is what a divide factor alone would ask it for.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
