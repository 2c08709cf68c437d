"""Pipeline parallelism: torch's schedules over stages that keep the full model's names.

A stage's shapes are frozen by its first micro-batch (measured: other shapes later are silently wrong), so
every micro-batch of every step has the same one: the last is filled up with samples that count for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    _PipelineSchedule,
)
from torch.distributed.pipelining.stage import _PipelineStageBase

from llmctl.errors import ConfigError
from llmctl.wire.parallel import ParallelSpec, micro_batches_per_step, schedule_fits
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.objective import Loss
from llmctl.worker.precision import MixedPrecision
from llmctl.worker.step import Batch, padding


class PipelineRunner:
    """See `worker.step.Runner`. Every rank is given its data rank's whole share.

    Args:
        stages: this rank's, in the order of the model; more than one only when interleaved.
        group: the ranks of this pipeline.
    """

    def __init__(
        self,
        *,
        stages: list[nn.Module],
        spec: ParallelSpec,
        group: dist.ProcessGroup,
        recipe: RecipeSpec,
        objective: Loss,
        precision: MixedPrecision,
        device: torch.device,
    ) -> None:
        largest = -(-recipe.global_batch // spec.data_ranks)
        self._size = min(recipe.micro_batch, largest)
        self._count = micro_batches_per_step(spec, recipe.global_batch, recipe.micro_batch)
        if not schedule_fits(spec, self._count):
            raise ConfigError(
                f"{spec.name} can't run {self._count} micro-batches per step",
                hint="set recipe.micro_batch so that there are a multiple of pp",
                stage="recipe",
            )
        for stage in stages:
            _autocast_forward(stage, precision)
        place = dist.get_rank(group)
        self._begins = place == 0
        self._ends = place + (len(stages) - 1) * spec.pp == spec.stages - 1
        pieces: list[_PipelineStageBase] = [
            PipelineStage(stage, place + number * spec.pp, spec.stages, device, group=group)
            for number, stage in enumerate(stages)
        ]
        self._schedule = _schedule(spec, pieces, self._count, objective)

    def run(self, batch: Batch) -> Tensor:
        """See Runner; the loss sum lies on the last stage's rank."""
        whole = _fill_up(batch, self._count * self._size)
        losses: list[Tensor] | None = [] if self._ends else None
        arguments: tuple[Tensor, ...] = (whole.inputs,) if self._begins else ()
        more: dict[str, Any] = {} if whole.samples is None else {"samples": whole.samples}
        target = whole.targets if self._ends else None
        self._schedule.step(*arguments, target=target, losses=losses, return_outputs=False, **more)
        total = torch.zeros((), dtype=torch.float64, device=batch.inputs.device)
        return total + sum(loss.detach().double() for loss in losses or ())


def _schedule(
    spec: ParallelSpec, pieces: list[_PipelineStageBase], count: int, objective: Loss
) -> _PipelineSchedule:
    """The schedule by name. `scale_grads` would divide by the number of micro-batches; ours are sums."""
    if spec.schedule == "interleaved":
        return ScheduleInterleaved1F1B(pieces, count, loss_fn=objective, scale_grads=False)
    kind = ScheduleGPipe if spec.schedule == "gpipe" else Schedule1F1B
    return kind(pieces[0], count, loss_fn=objective, scale_grads=False)


def _fill_up(batch: Batch, samples: int) -> Batch:
    """`batch` with samples that count for nothing behind it, `samples` in all."""
    missing = samples - len(batch.inputs)
    if missing == 0:
        return batch
    rest = padding(batch, missing)
    positions = None
    if batch.samples is not None and rest.samples is not None:
        positions = torch.cat((batch.samples, rest.samples))
    return Batch(
        inputs=torch.cat((batch.inputs, rest.inputs)),
        targets=torch.cat((batch.targets, rest.targets)),
        samples=positions,
    )


def _autocast_forward(stage: nn.Module, precision: MixedPrecision) -> None:
    """Autocast around the forward pass alone: the schedule runs backward passes in between."""
    if not precision.bf16:
        return
    plain = stage.forward

    def forward(*arguments: Any, **more: Any) -> Tensor:
        with precision.autocast():
            result: Tensor = plain(*arguments, **more)
            return result

    stage.forward = forward
