"""How the ranks of a replica speak: plans from rank 0, activations from stage to stage, outcomes back.

Every shape is known to both sides before a tensor travels: a plan has a fixed size, the rest follows from it.
Everything is sent without waiting for the receiver, so that all stages work at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmctl.errors import DeadlineError, JobFailedError, LlmctlError
from llmctl.worker.infer.engine.place import Place
from llmctl.worker.infer.engine.plan import Step, pack, plan_size, unpack
from llmctl.worker.infer.engine.sampler import Outcome

PLAN, ACTIVATION, VALUES, MEANS = 1, 2, 3, 4
"""Tags: what is of one kind comes in order."""


class Links:
    """One rank's connections. All ranks make one together, after `init_process_group`.

    Args:
        max_rows: most rows that a step can have.
        timeout_s: of everything that waits for another rank.
    """

    def __init__(self, place: Place, *, max_rows: int, dim: int, timeout_s: float) -> None:
        self.place = place
        self._max_rows = max_rows
        self._dim = dim
        self._timeout = timedelta(seconds=timeout_s)
        self._group = self._matrix_group()
        self._sent: deque[tuple[Any, Tensor]] = deque()

    def _matrix_group(self) -> dist.ProcessGroup | None:
        """The ranks that share this rank's matrices. Every rank takes part in making every group."""
        if self.place.tp == 1:
            return None
        made: list[dist.ProcessGroup] = [
            dist.new_group(self.place.stage_ranks(stage), timeout=self._timeout)
            for stage in range(self.place.pp)
        ]
        return made[self.place.stage]

    @property
    def last(self) -> int:
        """The rank that samples."""
        return self.place.world - self.place.tp

    def reduce(self, part: Tensor) -> None:
        """Sum over the ranks that share this rank's matrices, in place."""
        with _explained():
            dist.all_reduce(part, group=self._group)

    def gather_vocab(self, logits: Tensor, width: int) -> Tensor:
        """Shares [rows, width or less] of all ranks of this stage, side by side.

        Args:
            width: of the widest share.
        """
        if self._group is None:
            return logits
        own = logits.new_zeros(len(logits), width)
        own[:, : logits.shape[1]] = logits
        shares = [torch.empty_like(own) for _ in range(self.place.tp)]
        with _explained():
            dist.all_gather(shares, own, group=self._group)
        return torch.cat(shares, dim=1)

    def send_plan(self, step: Step) -> None:
        """From rank 0 to all others."""
        flat = pack(step, self._max_rows)
        for rank in range(1, self.place.world):
            self._send(flat, rank, PLAN)

    def receive_plan(self) -> Step:
        """The next plan.

        Raises:
            DeadlineError: rank 0 has been silent for too long.
        """
        flat = torch.empty(plan_size(self._max_rows), dtype=torch.int64)
        return unpack(self._receive(flat, 0, PLAN))

    def send_activation(self, x: Tensor) -> None:
        """To the same place of the next stage."""
        self._send(x.contiguous(), self.place.rank + self.place.tp, ACTIVATION)

    def receive_activation(self, step: Step) -> Tensor:
        """From the stage before."""
        buffer = torch.empty(len(step.rows), self._dim)
        return self._receive(buffer, self.place.rank - self.place.tp, ACTIVATION)

    def send_outcome(self, outcome: Outcome) -> None:
        """From the rank that samples to rank 0."""
        if outcome.values.numel():
            self._send(outcome.values.contiguous(), 0, VALUES)
        if outcome.means.numel():
            self._send(outcome.means.contiguous(), 0, MEANS)

    def receive_outcome(self, step: Step) -> Outcome:
        """Of a step that was sent; waits until it is done."""
        values = torch.empty(len(step.outputs), 2 + 2 * step.alternatives, dtype=torch.float64)
        means = torch.empty(step.pooled, self._dim)
        if values.numel():
            self._receive(values, self.last, VALUES)
        if means.numel():
            self._receive(means, self.last, MEANS)
        return Outcome(values=values, means=means)

    def settle(self) -> None:
        """Wait until all that was sent has arrived."""
        while self._sent:
            self._finish(self._sent.popleft()[0])

    def _send(self, tensor: Tensor, rank: int, tag: int) -> None:
        with _explained():
            self._sent.append((dist.isend(tensor, rank, tag=tag), tensor))
        while self._sent and self._sent[0][0].is_completed():
            self._finish(self._sent.popleft()[0])

    def _receive(self, buffer: Tensor, rank: int, tag: int) -> Tensor:
        with _explained():
            work = dist.irecv(buffer, rank, tag=tag)
        self._finish(work)
        return buffer

    def _finish(self, work: Any) -> None:
        with _explained():
            work.wait(self._timeout)


@dataclass(frozen=True, slots=True)
class _explained:
    """torch says what went wrong between ranks as a RuntimeError; ours say which kind it was."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, LlmctlError):
            return
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "imed out" in told or "timeout" in told.lower():
            raise DeadlineError(f"another rank is silent: {told}", stage="replica") from error
        raise LostRankError(f"another rank is gone: {told}", stage="replica") from error


class LostRankError(JobFailedError):
    """Another rank of this replica has ended."""
