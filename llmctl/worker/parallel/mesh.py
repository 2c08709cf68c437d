"""The layout of a mesh: tensor parallelism inside FSDP2 inside a pipeline, in any product.

Order of wrapping (measured, see docs/decisions/0010): build on the meta device, keep this stage's layers,
split matrices over tp, then mark recomputation and compile, then shard over dp_shard, then allocate, then
give each rank its part of the first weights. The optimizer comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmctl.errors import ConfigError
from llmctl.wire.parallel import DIMS, ParallelSpec, coordinates, micro_batches_per_step, rank_at
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.stages import misfit, pipeline_cuts
from llmctl.worker.lora import add_adapters
from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.decoder import Decoder, Part, make_decoder
from llmctl.worker.objective import Objective
from llmctl.worker.optim import local
from llmctl.worker.parallel.blocks import prepare_blocks
from llmctl.worker.parallel.initial import first_shards
from llmctl.worker.parallel.replicas import broadcast
from llmctl.worker.parallel.sums import MeshGradients
from llmctl.worker.precision import MixedPrecision
from llmctl.worker.session import Session
from llmctl.worker.step import Batch, Gradients, PlainRunner, Runner


class Pieces(nn.Module):
    """The stages that one pipeline rank holds, seen as one model with the full model's names."""

    def __init__(self, stages: list[Decoder]) -> None:
        super().__init__()
        # Not registered: a registered one would put its place in front of every name.
        self._stages = {"stages": stages}

    @property
    def stages(self) -> list[Decoder]:
        return self._stages["stages"]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        for stage in self.stages:
            yield from stage.named_parameters(prefix, recurse, remove_duplicate)


class Mesh:
    """See Layout. All ranks make one together."""

    def __init__(self, spec: ParallelSpec, session: Session) -> None:
        self.spec = spec
        self._session = session
        self._mesh: DeviceMesh = init_device_mesh(session.device.type, spec.sizes, mesh_dim_names=DIMS)
        for dim in DIMS:
            # A group of a mesh would wait for torch's half an hour, whatever the job's own timeout is.
            dist.distributed_c10d._set_pg_timeout(session.timeout, self._mesh.get_group(dim))
        self._pp, replica, shard, self._tp = coordinates(spec, session.rank)
        self.data_rank = replica * spec.dp_shard + shard
        self.data_ranks = spec.data_ranks
        self.counts = self._tp == 0 and self._pp == spec.pp - 1
        self._tied = self._tied_group()

    def _tied_group(self) -> dist.ProcessGroup | None:
        """The two ranks that hold this rank's part of a tied embedding, on the first and the last stage."""
        if self.spec.pp == 1 or self._pp not in (0, self.spec.pp - 1):
            return None
        place = coordinates(self.spec, self._session.rank)[1:]
        ends = [rank_at(self.spec, (stage, *place)) for stage in (0, self.spec.pp - 1)]
        group: dist.ProcessGroup = dist.new_group(
            ends, timeout=self._session.timeout, use_local_synchronization=True
        )
        return group

    def model(self, config: ModelConfig, recipe: RecipeSpec, precision: MixedPrecision) -> nn.Module:
        """See Layout: one Decoder, or Pieces where a rank holds several stages."""
        reason = misfit(self.spec, config, recipe.sequence_length)
        if reason:
            raise ConfigError(f"parallel: {reason}", hint="llmctl plan shows what fits", stage="recipe")
        cuts = pipeline_cuts(config, self.spec.stages, recipe.sequence_length)
        mine = cuts[self._pp :: self.spec.pp]
        stages = [self._stage(config, recipe, precision, first, stop) for first, stop in mine]
        return stages[0] if len(stages) == 1 else Pieces(stages)

    def _stage(
        self, config: ModelConfig, recipe: RecipeSpec, precision: MixedPrecision, first: int, stop: int
    ) -> Decoder:
        model = make_decoder(config, torch.device("meta"))
        model.keep_part(Part(first=first, stop=stop, layers=config.layers))
        if recipe.lora is not None:
            add_adapters(model, recipe.lora)
        if self.spec.tp > 1:
            from llmctl.worker.parallel.tensor import split_matrices

            split_matrices(model, self._mesh["tp"], self.spec)
            if self.spec.sequence_parallel:
                model.sequence_part = (self._tp, self.spec.tp)
        prepare_blocks(model, recipe, self._session.device)
        if self.spec.dp_shard > 1:
            from llmctl.worker.parallel.shard import shard_parameters

            dims = ("dp_replicate", "dp_shard") if self.spec.dp_replicate > 1 else ("dp_shard",)
            shard_parameters(model, self._mesh[dims], bf16=precision.bf16, keep=self.spec.pp > 1)
        model.to_empty(device=self._session.device)
        if recipe.model.source is None or recipe.lora is not None:
            first_shards(model, config, recipe.seed, learning_only=recipe.lora is not None)
        return model

    def align(self, model: nn.Module) -> None:
        """Copies of one shard on several replicas begin bit by bit alike, as do the ends of the pipeline."""
        if self.spec.dp_replicate > 1:
            group = self._mesh.get_group("dp_replicate")
            source = dist.get_global_rank(group, 0)
            broadcast([local(p) for p in model.parameters()], source=source, group=group)
        embedding = dict(model.named_parameters()).get("embed.weight")
        if self._tied is not None and embedding is not None and self._is_tied(model):
            source = dist.get_global_rank(self._tied, 0)
            broadcast([local(embedding)], source=source, group=self._tied)

    def _is_tied(self, model: nn.Module) -> bool:
        return stages_of(model)[0].config.tied_head

    def objective(self, recipe: RecipeSpec) -> Objective:
        return Objective(recipe.aggregation, loss_parallel=self._loss_parallel)

    @property
    def _loss_parallel(self) -> bool:
        return self.spec.tp > 1 and self.spec.loss_parallel

    def loss_context(self) -> AbstractContextManager[object]:
        """Around forward and backward passes."""
        if not self._loss_parallel:
            return nullcontext()
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel()

    def gradients(self, model: nn.Module) -> Gradients:
        tied = self._tied if self._is_tied(model) else None
        return MeshGradients(dict(model.named_parameters()), self._mesh, self.spec, tied)

    def runner(
        self,
        model: nn.Module,
        recipe: RecipeSpec,
        gradients: Gradients,
        precision: MixedPrecision,
        objective: Objective,
    ) -> Runner:
        if self.spec.pp > 1:
            from llmctl.worker.parallel.pipeline import PipelineRunner

            inner: Runner = PipelineRunner(
                stages=stages_of(model),
                spec=self.spec,
                group=self._mesh.get_group("pp"),
                recipe=recipe,
                objective=objective,
                precision=precision,
                device=self._session.device,
            )
        else:
            passes = micro_batches_per_step(self.spec, recipe.global_batch, recipe.micro_batch)
            inner = PlainRunner(
                model=model,
                gradients=gradients,
                precision=precision,
                objective=objective,
                micro_batch=recipe.micro_batch,
                passes=passes if self.spec.dp_shard > 1 else 0,
            )
        return _Within(inner, self)


class _Within:
    """A runner inside its layout's loss context."""

    def __init__(self, inner: Runner, layout: Mesh) -> None:
        self._inner = inner
        self._layout = layout

    def run(self, batch: Batch) -> torch.Tensor:
        """See Runner."""
        with self._layout.loss_context():
            return self._inner.run(batch)


def stages_of(model: nn.Module) -> list[Decoder]:
    """The decoders in what `Mesh.model` has made."""
    if isinstance(model, Pieces):
        return model.stages
    assert isinstance(model, Decoder)  # noqa: S101 - for the type checker
    return [model]
