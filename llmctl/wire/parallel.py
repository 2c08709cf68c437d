"""How a job's ranks share the work: one mesh (pp, dp_replicate, dp_shard, tp), and the arithmetic of it.

`tp` is innermost, so its ranks are neighbours on one host; `pp` is outermost. Pure numbers: the planner
refuses and estimates with them, the worker builds its mesh from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.errors import ConfigError

SCHEDULES = ("1f1b", "gpipe", "interleaved")

DIMS = ("pp", "dp_replicate", "dp_shard", "tp")
"""The mesh's dimensions, outermost first."""


@dataclass(frozen=True)
class ParallelSpec:
    """Sizes of the mesh's dimensions; their product is the world size.

    Attributes:
        pp: pipeline stages, one per rank (times `virtual_stages` with the interleaved schedule).
        dp_replicate: whole copies of whatever the other dimensions make of the model.
        dp_shard: ranks over which FSDP2 shards each copy's parameters, gradients and moments.
        tp: ranks that share each matrix.
        schedule: of the pipeline: `1f1b`, `gpipe` or `interleaved`.
        virtual_stages: pieces of the model on each pipeline rank; more than 1 only when interleaved.
        sequence_parallel: between the matrices, tp ranks hold a part of the sequence each.
        loss_parallel: tp ranks hold a part of the vocabulary's logits each.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    schedule: str = "1f1b"
    virtual_stages: int = 1
    sequence_parallel: bool = True
    loss_parallel: bool = True

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes in the order of DIMS."""
        return (self.pp, self.dp_replicate, self.dp_shard, self.tp)

    @property
    def world(self) -> int:
        """Ranks that it needs."""
        return self.pp * self.dp_replicate * self.dp_shard * self.tp

    @property
    def data_ranks(self) -> int:
        """Shares into which a global batch is cut; tp and pp peers work on the same samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def stages(self) -> int:
        """Pieces into which the pipeline cuts the model."""
        return self.pp * self.virtual_stages

    @property
    def is_replicas(self) -> bool:
        """Every rank holds the whole model."""
        return self.pp == self.dp_shard == self.tp == 1

    @property
    def name(self) -> str:
        """For people: `ddp 4`, `fsdp 2 x tp 2`, `pp 2 (1f1b)`."""
        parts = []
        if self.pp > 1:
            more = f", {self.virtual_stages} virtual" if self.virtual_stages > 1 else ""
            parts.append(f"pp {self.pp} ({self.schedule}{more})")
        if self.dp_shard > 1 and self.dp_replicate > 1:
            parts.append(f"hsdp {self.dp_replicate}x{self.dp_shard}")
        elif self.dp_shard > 1:
            parts.append(f"fsdp {self.dp_shard}")
        elif self.dp_replicate > 1:
            parts.append(f"ddp {self.dp_replicate}")
        if self.tp > 1:
            parts.append(f"tp {self.tp}")
        return " x ".join(parts) or "one process"


def coordinates(spec: ParallelSpec, rank: int) -> tuple[int, ...]:
    """Where `rank` lies in the mesh, in the order of DIMS."""
    found = []
    for size in reversed(spec.sizes):
        rank, place = divmod(rank, size)
        found.append(place)
    return tuple(reversed(found))


def rank_at(spec: ParallelSpec, place: tuple[int, ...]) -> int:
    """The rank at the coordinates `place`; the inverse of `coordinates`."""
    rank = 0
    for size, index in zip(spec.sizes, place):
        rank = rank * size + index
    return rank


def share(global_batch: int, rank: int, world: int, shares: Sequence[int] = ()) -> tuple[int, int]:
    """(first, count) of the samples that `rank` of `world` takes.

    Args:
        shares: samples of each rank; none: shares that differ by one at most.

    Raises:
        ConfigError: `shares` are not those of so many ranks and samples.
    """
    if shares:
        if len(shares) != world or sum(shares) != global_batch or min(shares) < 0:
            raise ConfigError(f"shares {list(shares)} are not {global_batch} samples of {world} ranks")
        return sum(shares[:rank]), shares[rank]
    first = rank * global_batch // world
    return first, (rank + 1) * global_batch // world - first


def micro_batches_per_step(spec: ParallelSpec, global_batch: int, micro_batch: int) -> int:
    """Forward passes of every rank in one step, the same for all: the largest share decides."""
    largest = -(-global_batch // spec.data_ranks)
    return -(-largest // micro_batch)


def schedule_fits(spec: ParallelSpec, micro_batches: int) -> bool:
    """Whether the pipeline's schedule can run that many micro-batches per step.

    1f1b must fill every stage. Interleaved works in rounds of about `pp` micro-batches, all of one length.
    """
    if spec.pp == 1 or spec.schedule == "gpipe":
        return True
    if spec.schedule == "1f1b":
        return micro_batches >= spec.pp
    return micro_batches % max(1, micro_batches // spec.pp) == 0
