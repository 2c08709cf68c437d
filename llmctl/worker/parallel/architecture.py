"""What a layout has to know of a model to spread it.

The built-in decoder's answers are in `decoder.py` beside this, another model.s in `worker/own/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import RecipeSpec

if TYPE_CHECKING:  # a start without a mesh does without this import
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One rank's place in a mesh.

    Attributes:
        pp, tp: its coordinates there.
        bf16: the forward pass runs in bf16.
    """

    mesh: DeviceMesh
    spec: ParallelSpec
    pp: int
    tp: int
    device: torch.device
    bf16: bool

    @property
    def shard_mesh(self) -> DeviceMesh:
        """The dimensions over which FSDP2 shards and copies."""
        return self.mesh[("dp_replicate", "dp_shard") if self.spec.dp_replicate > 1 else ("dp_shard",)]


class Architecture(Protocol):
    """A model before it is made."""

    @property
    def tied(self) -> bool:
        """Its first and last stage each hold the same `embed.weight`."""

    def whole(self, recipe: RecipeSpec, device: torch.device) -> nn.Module:
        """All of it on `device`, with its first weights where no checkpoint gives them."""

    def stages(self, recipe: RecipeSpec, seat: Seat) -> list[nn.Module]:
        """What the rank at `seat` holds, split and sharded: one module, or its pipeline stages in order.

        Parameters have the whole model's names; those that are shards are DTensors.

        Raises:
            ConfigError: this model can't be spread so.
        """

    def is_partial(self, name: str, spec: ParallelSpec) -> bool:
        """Whether each tp rank has only its own share of the gradient of the plain parameter `name`."""
