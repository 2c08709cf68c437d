"""Seconds of one step in any layout. Pure.

Compute: 6 floating-point operations per parameter and token (arXiv 2001.08361, section 2.1), attention and
recomputation besides. Collectives: a ring's n - 1 rounds each way (nccl-tests, doc/PERFORMANCE.md); FSDP
moves 3 times the parameters, replicas twice the gradients (arXiv 1910.02054, section 7); tensor parallelism
moves the residual stream four times per layer, as reduce-scatter and all-gather with sequence parallelism
(arXiv 2205.05198, section 4.2.2); the pipeline's bubble is (p - 1) / m of the ideal time, divided by v when
interleaved (arXiv 2104.04473, sections 2.2.1 and 2.2.2).

Estimates to compare layouts by, not promises: a collective has its links for itself, and what can hide behind
compute hides wholly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.controller.plan.machines import Fleet
from llmctl.controller.plan.memory import BF16, FP32, needs_bf16
from llmctl.wire.model import ModelConfig, count_parameters
from llmctl.wire.parallel import DIMS, ParallelSpec, coordinates, micro_batches_per_step, rank_at
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.stages import block_flops, pipeline_cuts

RECOMPUTED = {"none": 0.0, "selective": 0.5, "full": 1.0}
"""Share of the layers whose forward pass runs twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one step, by what they are spent on; communication counts as far as compute can't hide it.

    Attributes:
        compute: of the slowest rank, recomputation included.
        data, shard, tensor, pipeline: exposed traffic of replicas, FSDP, tensor and pipeline parallelism.
        bubble: waiting for the pipeline to fill and to drain.
        traffic: seconds of all sums over data ranks and gathers, hidden or not.
        tokens: of the global batch.
    """

    compute: float
    data: float
    shard: float
    tensor: float
    pipeline: float
    bubble: float
    traffic: float
    tokens: int

    @property
    def total(self) -> float:
        return self.compute + self.data + self.shard + self.tensor + self.pipeline + self.bubble

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total

    @property
    def exposed(self) -> float:
        """Share of the step that is communication nothing hides."""
        return (self.data + self.shard + self.tensor + self.pipeline) / self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks along one mesh dimension: how many, how fast each link of their ring is, how late."""

    size: int
    bandwidth: float
    latency: float
    crosses: bool

    def ring(self, whole: float, rounds: int) -> float:
        """Seconds of `rounds` passes over a ring (2: all-reduce, 1: all-gather or reduce-scatter) of
        `whole` bytes in all."""
        if self.size == 1:
            return 0.0
        steps = rounds * (self.size - 1)
        return steps * (whole / self.size / self.bandwidth + self.latency)

    def send(self, count: float) -> float:
        """Seconds to hand `count` bytes to the neighbour."""
        return 0.0 if self.size == 1 else count / self.bandwidth + self.latency


def groups(fleet: Fleet, spec: ParallelSpec) -> dict[str, Group]:
    """The slowest group of each mesh dimension. Groups that leave a host at once share its network."""
    host_of = [number for number, machine in enumerate(fleet.machines) for _ in range(machine.ranks)]
    return {dim: _group(fleet, spec, index, host_of) for index, dim in enumerate(DIMS)}


def _group(fleet: Fleet, spec: ParallelSpec, dim: int, host_of: list[int]) -> Group:
    size = spec.sizes[dim]
    crossing: dict[int, int] = {}
    for rank in range(spec.world):
        place = coordinates(spec, rank)
        if size == 1 or place[dim]:
            continue
        members = [rank_at(spec, (*place[:dim], index, *place[dim + 1 :])) for index in range(size)]
        hosts = {host_of[member] for member in members}
        for host in hosts if len(hosts) > 1 else ():
            crossing[host] = crossing.get(host, 0) + 1
    inside, links = fleet.slowest.inside, fleet.links
    if not crossing:
        return Group(size=size, bandwidth=inside, latency=links.latency_inside, crosses=False)
    shared = min(inside, links.between / max(crossing.values()))
    return Group(size=size, bandwidth=shared, latency=links.latency_between, crosses=True)


def estimate_time(
    model: ModelConfig, recipe: RecipeSpec, spec: ParallelSpec, fleet: Fleet, along: Mapping[str, Group]
) -> StepTime:
    """One step of the built-in recipe. `recipe.parallel` does not matter; `along`: `groups(fleet, spec)`."""
    bf16 = needs_bf16(recipe, is_cpu=fleet.slowest.is_cpu)
    passes = micro_batches_per_step(spec, recipe.global_batch, recipe.micro_batch)
    share = -(-recipe.global_batch // spec.data_ranks)
    tokens = share * recipe.sequence_length
    compute = _compute(model, recipe, spec, fleet, tokens, bf16=bf16)
    one = FP32 * model.dim * tokens / passes
    layers = -(-model.layers // spec.pp)
    tensor = passes * layers * 4 * along["tp"].ring(one, 2)
    per_rank = count_parameters(model) / (spec.pp * spec.tp)
    width = BF16 if bf16 else FP32
    gathered = _shard(per_rank, width, spec, along["dp_shard"], passes)
    copied, hides = _copies(per_rank, spec, along["dp_replicate"], passes)
    bubble = (compute + tensor) * (spec.pp - 1) / (passes * spec.virtual_stages)
    hops = 2 * (passes + spec.pp - 1) * spec.virtual_stages if spec.pp > 1 else 0
    parts = spec.tp if spec.sequence_parallel else 1
    return StepTime(
        compute=compute,
        data=max(0.0, copied - hides * compute),
        shard=max(0.0, gathered - compute),
        tensor=tensor,
        pipeline=hops * along["pp"].send(one / parts),
        bubble=bubble,
        traffic=gathered + copied,
        tokens=recipe.global_batch * recipe.sequence_length,
    )


def _shard(per_rank: float, width: int, spec: ParallelSpec, group: Group, passes: int) -> float:
    """FSDP2's seconds: gather in the forward and in the backward pass of every micro-batch (once per step in
    a pipeline, which keeps blocks whole), and sum fp32 gradients after each backward pass."""
    if spec.dp_shard == 1:
        return 0.0
    gathers, sums = (1, 1) if spec.pp > 1 else (2 * passes, passes)
    return gathers * group.ring(width * per_rank, 1) + sums * group.ring(FP32 * per_rank, 1)


def _copies(per_rank: float, spec: ParallelSpec, group: Group, passes: int) -> tuple[float, float]:
    """Seconds of the sums over copies, and the share of compute that they hide behind: ours come once per
    step, beside the last backward pass; FSDP's own on a 2-D mesh after each backward pass."""
    own = spec.dp_shard == 1 or spec.pp > 1
    whole = group.ring(FP32 * per_rank / spec.dp_shard, 2)
    return (whole, 0.5 / passes) if own else (whole * passes, 0.5)


def _compute(
    model: ModelConfig, recipe: RecipeSpec, spec: ParallelSpec, fleet: Fleet, tokens: int, *, bf16: bool
) -> float:
    """Seconds that the slowest rank computes, `tokens` of its data rank's share."""
    again = RECOMPUTED[recipe.activation_checkpointing]
    block = block_flops(model, recipe.sequence_length) * (3 + again)
    head = 2 * model.vocab_size * model.dim * 3
    cuts = pipeline_cuts(model, spec.stages, recipe.sequence_length)
    by_rank = [
        sum((stop - first) * block + (stop == model.layers) * head for first, stop in cuts[place :: spec.pp])
        for place in range(spec.pp)
    ]
    device = fleet.slowest
    speed = (device.bf16 if bf16 else device.fp32) * device.efficiency
    return tokens * max(by_rank) / spec.tp / speed
