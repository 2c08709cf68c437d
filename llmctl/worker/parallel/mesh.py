"""The layout of a mesh: tensor parallelism inside FSDP2 inside a pipeline, in any product.

How a model is cut is the model's own matter (`architecture.py`); what follows from the cuts is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmctl.wire.parallel import DIMS, ParallelSpec, coordinates, micro_batches_per_step, rank_at
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.objective import Loss
from llmctl.worker.optim import local
from llmctl.worker.parallel.architecture import Architecture, Seat
from llmctl.worker.parallel.replicas import broadcast
from llmctl.worker.parallel.sums import MeshGradients
from llmctl.worker.precision import MixedPrecision
from llmctl.worker.session import Session
from llmctl.worker.step import Batch, Gradients, PlainRunner, Runner


class Pieces(nn.Module):
    """The stages that one pipeline rank holds, seen as one model with the full model's names."""

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        # Not registered: a registered one would put its place in front of every name.
        self._stages = {"stages": stages}

    @property
    def stages(self) -> list[nn.Module]:
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
            dist.distributed_c10d._set_pg_timeout(session.timeout, self.mesh.get_group(dim))
        self._pp, replica, shard, self._tp = coordinates(spec, session.rank)
        self.data_rank = replica * spec.dp_shard + shard
        self.data_ranks = spec.data_ranks
        self.counts = self._tp == 0 and self._pp == spec.pp - 1
        self._tied = self._tied_group()

    @property
    def mesh(self) -> DeviceMesh:
        return self._mesh

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

    def model(self, architecture: Architecture, recipe: RecipeSpec, precision: MixedPrecision) -> nn.Module:
        """See Layout: one module, or Pieces where a rank holds several stages."""
        self._architecture = architecture
        seat = Seat(
            mesh=self.mesh,
            spec=self.spec,
            pp=self._pp,
            tp=self._tp,
            device=self._session.device,
            bf16=precision.bf16,
        )
        stages = architecture.stages(recipe, seat)
        return stages[0] if len(stages) == 1 else Pieces(stages)

    def align(self, model: nn.Module) -> None:
        """Copies of one shard on several replicas begin bit by bit alike, as do the ends of the pipeline."""
        if self.spec.dp_replicate > 1:
            group = self.mesh.get_group("dp_replicate")
            source = dist.get_global_rank(group, 0)
            broadcast([local(p) for p in model.parameters()], source=source, group=group)
        embedding = dict(model.named_parameters()).get("embed.weight")
        if self._tied is not None and embedding is not None and self._architecture.tied:
            source = dist.get_global_rank(self._tied, 0)
            broadcast([local(embedding)], source=source, group=self._tied)

    @property
    def loss_parallel(self) -> bool:
        return self.spec.tp > 1 and self.spec.loss_parallel

    def loss_context(self) -> AbstractContextManager[object]:
        """Around forward and backward passes."""
        if not self.loss_parallel:
            return nullcontext()
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel()

    def gradients(self, model: nn.Module) -> Gradients:
        tied = self._tied if self._architecture.tied else None
        return MeshGradients(
            dict(model.named_parameters()),
            self.mesh,
            self.spec,
            tied,
            is_partial=lambda name: self._architecture.is_partial(name, self.spec),
        )

    def runner(
        self,
        model: nn.Module,
        recipe: RecipeSpec,
        gradients: Gradients,
        precision: MixedPrecision,
        objective: Loss,
    ) -> Runner:
        if self.spec.pp > 1:
            from llmctl.worker.parallel.pipeline import PipelineRunner

            inner: Runner = PipelineRunner(
                stages=stages_of(model),
                spec=self.spec,
                group=self.mesh.get_group("pp"),
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


def stages_of(model: nn.Module) -> list[nn.Module]:
    """The modules in what `Mesh.model` has made."""
    return model.stages if isinstance(model, Pieces) else [model]
