"""One forward pass as a value: which tokens go in where, and what is wanted of which of them.

Rank 0 makes it, and it travels to the other ranks as one tensor of fixed size, so that they can wait for it
without knowing anything yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOKEN, SLOT, POSITION = 0, 1, 2
"""Columns of `Step.rows`."""

ROW, KIND, TARGET, TOP_K, ALTERNATIVES = 0, 1, 2, 3, 4
"""Columns of `Step.outputs`."""

TEMPERATURE, TOP_P, UNIFORM, PENALTY = 0, 1, 2, 3
"""Columns of `Step.numbers`."""

SAMPLE, SCORE, POOL, POOL_LAST = 0, 1, 2, 3
"""Kinds of outputs: choose the next token; the log-probability of TARGET; add the last hidden state to its
slot's sum, and (POOL_LAST) tell the mean."""

WORK, NOTHING, END = 0, 1, 2
_HEADER = 4
_ROW_WIDTH, _OUTPUT_WIDTH, _NUMBER_WIDTH = 3, 5, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A forward pass over T tokens of which O outputs are wanted.

    Attributes:
        group: number of the micro-batch that it belongs to.
        rows: int64 [T, 3]: token, slot, position; the rows of one slot lie together, in order.
        outputs: int64 [O, 5]: row, kind, target, top_k, number of alternatives.
        numbers: float64 [O, 4]: temperature, top_p, a uniform random number, repetition penalty.
        order: WORK; NOTHING: a sign of life; END: the last one.
    """

    group: int
    rows: Tensor
    outputs: Tensor
    numbers: Tensor
    order: int = WORK

    @property
    def alternatives(self) -> int:
        """The widest output's."""
        return max(0, int(self.outputs[:, ALTERNATIVES].max())) if len(self.outputs) else 0

    @property
    def pooled(self) -> int:
        """Number of means that the last stage tells."""
        return int((self.outputs[:, KIND] == POOL_LAST).sum()) if len(self.outputs) else 0


def make_step(
    group: int,
    rows: list[tuple[int, int, int]],
    outputs: list[tuple[int, int, int, int, int]],
    numbers: list[tuple[float, float, float, float]],
) -> Step:
    """A Step from plain numbers."""
    return Step(
        group=group,
        rows=torch.tensor(rows, dtype=torch.int64).view(-1, _ROW_WIDTH),
        outputs=torch.tensor(outputs, dtype=torch.int64).view(-1, _OUTPUT_WIDTH),
        numbers=torch.tensor(numbers, dtype=torch.float64).view(-1, _NUMBER_WIDTH),
    )


def empty_step(order: int) -> Step:
    """A sign of life, or the end."""
    made = make_step(0, [], [], [])
    return Step(group=0, rows=made.rows, outputs=made.outputs, numbers=made.numbers, order=order)


def plan_size(max_rows: int) -> int:
    """Numbers in the tensor of any step with up to `max_rows` rows."""
    return _HEADER + max_rows * (_ROW_WIDTH + _OUTPUT_WIDTH + _NUMBER_WIDTH)


def pack(step: Step, max_rows: int) -> Tensor:
    """The step as int64 [plan_size(max_rows)]."""
    flat = torch.zeros(plan_size(max_rows), dtype=torch.int64)
    flat[:_HEADER] = torch.tensor([step.order, step.group, len(step.rows), len(step.outputs)])
    parts = (step.rows.flatten(), step.outputs.flatten(), step.numbers.flatten().view(torch.int64))
    body = torch.cat(parts)
    flat[_HEADER : _HEADER + len(body)] = body
    return flat


def unpack(flat: Tensor) -> Step:
    """The inverse of `pack`."""
    order, group, rows, outputs = flat[:_HEADER].tolist()
    sizes = [_HEADER, rows * _ROW_WIDTH, outputs * _OUTPUT_WIDTH, outputs * _NUMBER_WIDTH]
    rest = len(flat) - sum(sizes)
    _, first, second, third, _ = torch.split(flat, [*sizes, rest])
    return Step(
        group=group,
        rows=first.view(-1, _ROW_WIDTH),
        outputs=second.view(-1, _OUTPUT_WIDTH),
        numbers=third.view(torch.float64).view(-1, _NUMBER_WIDTH),
        order=order,
    )
