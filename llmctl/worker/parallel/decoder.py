"""The built-in decoder as layouts see it.

Order of wrapping (measured, see docs/decisions/0010): build on the meta device, keep this stage's layers,
split matrices over tp, then mark recomputation and compile, then shard over dp_shard, then allocate, then
give each rank its part of the first weights. The optimizer comes last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from llmctl.errors import ConfigError
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.stages import misfit, pipeline_cuts
from llmctl.worker.lora import add_adapters
from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.decoder import Decoder, Part, initialise, make_decoder
from llmctl.worker.parallel.architecture import Seat
from llmctl.worker.parallel.blocks import prepare_blocks


@dataclass(frozen=True, slots=True)
class DecoderArchitecture:
    """See Architecture."""

    config: ModelConfig

    @property
    def tied(self) -> bool:
        return self.config.tied_head

    def whole(self, recipe: RecipeSpec, device: torch.device) -> nn.Module:
        """See Architecture; allocated once, on the device where it stays."""
        model = make_decoder(self.config, device)
        if recipe.lora is not None:
            add_adapters(model, recipe.lora)
        if recipe.model.source is None or recipe.lora is not None:
            initialise(model, recipe.seed, learning_only=recipe.lora is not None)
        prepare_blocks(model, recipe, device)
        return model

    def stages(self, recipe: RecipeSpec, seat: Seat) -> list[nn.Module]:
        """See Architecture."""
        reason = misfit(seat.spec, self.config, recipe.sequence_length)
        if reason:
            raise ConfigError(f"parallel: {reason}", hint="llmctl plan shows what fits", stage="recipe")
        cuts = pipeline_cuts(self.config, seat.spec.stages, recipe.sequence_length)
        mine = cuts[seat.pp :: seat.spec.pp]
        return [self._stage(recipe, seat, first, stop) for first, stop in mine]

    def _stage(self, recipe: RecipeSpec, seat: Seat, first: int, stop: int) -> Decoder:
        from llmctl.worker.parallel.initial import first_shards

        model = make_decoder(self.config, torch.device("meta"))
        model.keep_part(Part(first=first, stop=stop, layers=self.config.layers))
        if recipe.lora is not None:
            add_adapters(model, recipe.lora)
        if seat.spec.tp > 1:
            from llmctl.worker.parallel.tensor import split_matrices

            split_matrices(model, seat.mesh["tp"], seat.spec)
            if seat.spec.sequence_parallel:
                model.sequence_part = (seat.tp, seat.spec.tp)
        prepare_blocks(model, recipe, seat.device)
        if seat.spec.dp_shard > 1:
            from llmctl.worker.parallel.shard import shard_parameters

            keep = seat.spec.pp > 1
            shard_parameters(model, model.layers.values(), seat.shard_mesh, bf16=seat.bf16, keep=keep)
        model.to_empty(device=seat.device)
        if recipe.model.source is None or recipe.lora is not None:
            first_shards(model, self.config, recipe.seed, learning_only=recipe.lora is not None)
        return model

    def is_partial(self, name: str, spec: ParallelSpec) -> bool:
        """Norms of single heads see their rank's heads, all others their rank's positions."""
        return spec.sequence_parallel or name.endswith(("q_norm.weight", "k_norm.weight"))
