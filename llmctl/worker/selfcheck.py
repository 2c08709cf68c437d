"""The proof, on the job's own hosts and layout, that its gradient is that of one process.

Before the first step, every rank computes the gradient of the first global batch as it will in training;
rank 0 computes it again, alone, on the same weights, and compares. Rank 0 needs room for the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmctl.errors import JobFailedError, LlmctlError
from llmctl.wire.parallel import ParallelSpec, coordinates, rank_at, share
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.objective import Loss, whole
from llmctl.worker.parallel.architecture import Architecture
from llmctl.worker.parallel.layout import Layout, Replicas
from llmctl.worker.precision import MixedPrecision
from llmctl.worker.session import Session
from llmctl.worker.step import Batch, Stepper, cut

BOUND, BOUND_TP = 1e-6, 5e-6
"""With tp, the sums inside each product are made in another order; measured: 1.1e-6 with tp, 6e-8 without.
That is float32: against a float64 reference tp is off by 6e-7 and one process by 8e-7 (both are tested)."""

BOUND_BF16, BOUND_BF16_TP = 1e-3, 2e-2
"""The same in bf16; measured: 9e-3 with tp, 4e-5 without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """`error`: norm of the difference over the norm of one process's gradient; `bound`: what it may be."""

    error: float
    bound: float

    def line(self) -> str:
        return (
            f"self-check: the gradient of the first batch differs by {self.error:.1e} from one process's "
            f"(bound {self.bound:.0e})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """All that a check needs; every rank makes one and calls `run`.

    Args:
        objective_of: the loss as ranks of a layout compute it.
        batch_of: (data rank, data ranks) -> that share of the first global batch.
    """

    layout: Layout
    session: Session
    model: nn.Module
    stepper: Stepper
    architecture: Architecture
    objective_of: Callable[[Layout], Loss]
    recipe: RecipeSpec
    precision: MixedPrecision
    batch_of: Callable[[int, int], Batch]

    def run(self) -> Checked:
        """Compare. The weights stay as they are, the gradients are cleared by the next step.

        Raises:
            JobFailedError: the gradients differ by more than the bound. On all ranks.
        """
        layout = self.layout
        totals, _ = self.stepper.accumulate(self.batch_of(layout.data_rank, layout.data_ranks))
        gradients = self._whole(lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
        weights = self._whole(lambda p: p.detach())
        failure: LlmctlError | None = None
        error = 0.0
        if self.session.is_first:
            error = self._compare(gradients, weights, float(totals[1]))
        error = self.session.gather(error)[0]
        checked = Checked(error=error, bound=self._bound)
        if not error <= checked.bound:
            failure = JobFailedError(
                checked.line(),
                hint="this layout would train another model: please report it",
                stage="self-check",
            )
        self.session.agree(failure)
        return checked

    @property
    def _bound(self) -> float:
        is_tp = self.layout.spec.tp > 1
        if self.precision.bf16:
            return BOUND_BF16_TP if is_tp else BOUND_BF16
        return BOUND_TP if is_tp else BOUND

    def _compare(self, gradients: dict[str, Tensor], weights: dict[str, Tensor], weight: float) -> float:
        """The relative difference of `gradients`, which are sums, from those of one process; rank 0 only."""
        alone, reference_weight = self._alone(weights)
        difference = reference = 0.0
        for name, parameter in alone.named_parameters():
            if not parameter.requires_grad:
                continue
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            expected = own.double() / reference_weight
            found = gradients[name].double().to(expected.device) / weight
            difference += float((found - expected).square().sum())
            reference += float(expected.square().sum())
        return math.sqrt(difference / max(reference, 1e-300))

    def _alone(self, weights: dict[str, Tensor]) -> tuple[nn.Module, float]:
        """One process's model with its gradient sums in `.grad`, and the weight to divide them by."""
        session = replace(self.session, rank=0, world=1, host_group=None)
        layout = Replicas(ParallelSpec(), session)
        recipe = replace(self.recipe, compile=False, parallel=None)
        model = layout.model(self.architecture, recipe, self.precision)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        objective, gradients = self.objective_of(layout), layout.gradients(model)
        runner = layout.runner(model, recipe, gradients, self.precision, objective)
        total = 0.0
        for piece in self._shares():
            weight, _ = objective.begin(piece.targets)
            runner.run(piece)
            total += float(weight)
        return model, total

    def _shares(self) -> Iterator[Batch]:
        """The global batch by data ranks, because a mean over ranks' means depends on the cut."""
        batch, ranks = self.batch_of(0, 1), self.layout.data_ranks
        for rank in range(ranks):
            first, count = share(self.recipe.global_batch, rank, ranks, self.recipe.shares)
            yield cut(batch, first, first + count)

    @torch.no_grad()
    def _whole(self, value: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        """`value` of every parameter of the whole model, on rank 0; on other ranks, of their own stage."""
        mine = {}
        for name, parameter in self.model.named_parameters():
            # All ranks, in one order: putting shards together is a collective.
            tensor = whole(value(parameter))
            if self.session.is_first or self._speaks:
                mine[name] = tensor.contiguous()
        return self._gather_stages(mine)

    @property
    def _speaks(self) -> bool:
        """The one rank of each pipeline stage that sends to rank 0."""
        return coordinates(self.layout.spec, self.session.rank)[1:] == (0, 0, 0)

    def _gather_stages(self, mine: dict[str, Tensor]) -> dict[str, Tensor]:
        spec, session = self.layout.spec, self.session
        if spec.pp == 1:
            return mine
        told = session.gather([(name, tuple(t.shape), t.dtype) for name, t in mine.items()])
        for stage in range(1, spec.pp):
            source = rank_at(spec, (stage, 0, 0, 0))
            if session.rank == source:
                for tensor in mine.values():
                    dist.send(tensor, 0)
            if session.is_first:
                for name, shape, dtype in told[source]:
                    mine[name] = torch.empty(shape, dtype=dtype, device=session.device)
                    dist.recv(mine[name], source)
        return mine
