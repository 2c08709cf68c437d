"""Which of the layouts that fit: the first rule that holds decides, and says so in one line. Pure.

1. The model fits one device as the job asks: replicas, which send one sum of gradients per step.
2. Else shards (FSDP, over all ranks or inside each host) where their traffic hides behind compute.
3. Else the fastest of what is left: tensor parallelism inside hosts, pipelines with at least four
   micro-batches per stage, shards whose traffic does not hide, replicas that recompute more or take smaller
   micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmctl.controller.plan.layouts import Question, Row, judge_all
from llmctl.wire.parallel import ParallelSpec

HIDDEN = 0.05
"""A step of which at most this share is exposed traffic counts as hidden."""
PASSES_PER_STAGE = 4
"""Micro-batches per pipeline stage below which the bubble is above a fifth of the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The layout to take (None: nothing fits) and the rule that decided."""

    row: Row | None
    why: str


def choose(rows: Sequence[Row]) -> Choice:
    """The best of `judge_all`'s rows; the same rows always give the same choice."""
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return Choice(row=None, why=_nothing(rows))
    for row in fitting:
        if row.spec.is_replicas and row.as_asked:
            return Choice(row=row, why=f"the whole model fits one device ({_room(row)}): replicas")
    hidden = [row for row in fitting if _is_sharded(row.spec) and _exposed(row) <= HIDDEN]
    if hidden:
        row = min(hidden, key=_order)
        return Choice(
            row=row,
            why=f"the whole model does not fit one device; shards do ({_room(row)}), and their traffic hides "
            f"behind compute ({_exposed(row):.0%} of the step exposed)",
        )
    best = min([row for row in fitting if _is_sound(row)] or fitting, key=_order)
    return Choice(row=best, why=_fastest(best, rows))


def way_out(question: Question) -> str:
    """What would do where nothing fits as things are: a store for checkpoints, or another job."""
    if not question.site.shared_checkpoints and question.site.hosts > 1:
        row = choose(judge_all(replace(question, shared_checkpoints=True))).row
        if row is not None:
            return (
                f"set checkpoint.uri to a store that all hosts see: then {row.spec.name} fits ({_room(row)})"
            )
    return "more hosts, a smaller model or a shorter sequence helps"


def _order(row: Row) -> tuple[float, float, tuple[int, ...]]:
    """By time to a percent, which is more than the estimate knows; among equals, least traffic first."""
    if row.time is None:
        return (0.0, 0.0, row.spec.sizes)
    return (float(f"{row.time.total:.1e}"), row.time.traffic, row.spec.sizes)


def _exposed(row: Row) -> float:
    return row.time.exposed if row.time else 0.0


def _is_sharded(spec: ParallelSpec) -> bool:
    return spec.dp_shard > 1 and spec.pp == spec.tp == 1


def _is_sound(row: Row) -> bool:
    return row.spec.pp == 1 or row.passes >= PASSES_PER_STAGE * row.spec.pp


def _room(row: Row) -> str:
    needed = row.memory.total if row.memory else 0
    return f"{needed / 1e9:.1f} of {row.capacity / 1e9:.1f} GB"


def _fastest(best: Row, rows: Sequence[Row]) -> str:
    sharded = [row for row in rows if row.fits and _is_sharded(row.spec)]
    shards = min((_exposed(row) for row in sharded), default=None)
    first = (
        "neither the whole model nor plain shards fit one device"
        if shards is None
        else f"the traffic of plain shards does not hide ({shards:.0%} of the step exposed)"
    )
    parts = [
        f"tp {best.spec.tp} stays inside each host" if best.spec.tp > 1 else "",
        f"a pipeline sends least over slow links, {best.passes} micro-batches fill it"
        if best.spec.pp > 1
        else "",
        f"{best.checkpointing} recomputation" if not best.as_asked and best.checkpointing != "none" else "",
    ]
    told = "; ".join(part for part in parts if part)
    return f"{first}; the fastest that fits ({_room(best)})" + (f": {told}" if told else "")


def _nothing(rows: Sequence[Row]) -> str:
    large = [row for row in rows if row.memory is not None]
    if not large:
        return "no layout can work: " + (rows[0].why if rows else "there are no ranks")
    nearest = min(large, key=lambda row: row.memory.total if row.memory else 0)
    return (
        f"nothing fits; {nearest.spec.name} with micro_batch {nearest.micro_batch} and "
        f"{nearest.checkpointing} recomputation comes nearest: {_room(nearest)}"
    )
