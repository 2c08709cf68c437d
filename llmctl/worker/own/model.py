"""A model of your own as layouts see it: made whole from the seed, made equal on all ranks, then cut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from llmctl.errors import ConfigError
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.own.plan import Plan, matching
from llmctl.worker.parallel.architecture import Seat
from llmctl.worker.parallel.replicas import broadcast

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

STAGE = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnArchitecture:
    """See Architecture.

    Attributes:
        make: makes the whole model with its first weights, drawn from torch's seeded random stream.
    """

    make: Callable[[], nn.Module]
    plan: Plan

    @property
    def tied(self) -> bool:
        return False

    def whole(self, recipe: RecipeSpec, device: torch.device) -> nn.Module:
        """See Architecture."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = self.make()
        _check(model)
        if recipe.compile:
            for name in matching([name for name, _ in model.named_modules()], self.plan.blocks):
                model.get_submodule(name).compile()
        return model.to(device)

    def stages(self, recipe: RecipeSpec, seat: Seat) -> list[nn.Module]:
        """See Architecture. Every rank needs memory for the whole model, once."""
        model = self.whole(recipe, seat.device)
        # Before the cuts: another kind of processor may round the random numbers otherwise.
        broadcast(model.parameters(), source=0)
        mine = self._pipeline(model, seat) if seat.spec.pp > 1 else [model]
        if seat.spec.tp > 1:
            self._split(mine, seat.mesh["tp"])
        if seat.spec.dp_shard > 1:
            for stage in mine:
                self._shard(stage, seat)
        return mine

    def is_partial(self, name: str, spec: ParallelSpec) -> bool:
        """Outside the plan every tp rank computes the same."""
        return False

    def _pipeline(self, model: nn.Module, seat: Seat) -> list[nn.Module]:
        if not isinstance(model, nn.Sequential):
            raise ConfigError(
                f"parallel.pp: {type(model).__name__} is no nn.Sequential, which is what can be cut",
                hint="make the model an nn.Sequential, or use dp_shard",
                stage=STAGE,
            )
        children = list(model.named_children())
        starts = [0, *self._starts([name for name, _ in children], seat.spec.stages)]
        ends = [*starts[1:], len(children)]
        pieces = [children[start:end] for start, end in zip(starts, ends, strict=True)]
        return [_Stage(OrderedDict(piece)) for piece in pieces[seat.pp :: seat.spec.pp]]

    def _starts(self, names: list[str], stages: int) -> list[int]:
        """Where the second and later stages begin."""
        if not self.plan.cuts:
            found = [number * len(names) // stages for number in range(1, stages)]
        else:
            unknown = [cut for cut in self.plan.cuts if cut not in names]
            if unknown:
                raise ConfigError(f"Plan.cuts: the model has no child {unknown[0]!r}", stage=STAGE)
            found = [names.index(cut) for cut in self.plan.cuts]
        if len(found) != stages - 1 or sorted({0, *found}) != [0, *found]:
            raise ConfigError(
                f"Plan.cuts: {len(self.plan.cuts)} cuts in {len(names)} children make no {stages} stages",
                hint=f"name the children, in order, with which stages 2 to {stages} begin",
                stage=STAGE,
            )
        return found

    def _split(self, stages: list[nn.Module], mesh: DeviceMesh) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        for stage in stages:
            names = [name for name, _ in stage.named_modules()]
            columns, rows = matching(names, self.plan.columns), matching(names, self.plan.rows)
            for name in (*columns, *rows):
                _check_matrix(name, stage.get_submodule(name), mesh.size(), by_rows=name in rows)
            styles = {name: ColwiseParallel() for name in columns}
            parallelize_module(stage, mesh, {**styles, **{name: RowwiseParallel() for name in rows}})
        if not (self.plan.columns and self.plan.rows):
            raise ConfigError("parallel.tp: Plan.columns and Plan.rows name no layers to share", stage=STAGE)

    def _shard(self, stage: nn.Module, seat: Seat) -> None:
        from llmctl.worker.parallel.shard import shard_parameters

        names = matching([name for name, _ in stage.named_modules()], self.plan.blocks)
        # The inner ones first: what an outer one finds sharded it leaves alone.
        blocks = [stage.get_submodule(name) for name in reversed(names)]
        shard_parameters(stage, blocks, seat.shard_mesh, bf16=False, keep=seat.spec.pp > 1)


class _Stage(nn.Sequential):
    """Some children of the model, by their names there."""

    def forward(self, input: Tensor) -> Tensor:
        """What goes to the next rank must lie in one piece; a recurrent layer's output may not."""
        output: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return output.contiguous()


def _check(model: nn.Module) -> None:
    """Refuse what would train another model in every layout.

    Raises:
        ConfigError: batch norms, whose statistics depend on how a batch is cut; parameters not in fp32.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{name or 'the model'} is a {type(module).__name__}: what it computes depends on how the "
                "batch is cut over ranks and micro-batches",
                hint="use nn.GroupNorm or nn.LayerNorm",
                stage=STAGE,
            )
    other = next((name for name, p in model.named_parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise ConfigError(f"{other} is not float32", hint="recipe.precision: bf16 does that", stage=STAGE)


def _check_matrix(name: str, module: nn.Module, ranks: int, *, by_rows: bool) -> None:
    if not isinstance(module, nn.Linear):
        raise ConfigError(f"Plan: {name} is a {type(module).__name__}, no nn.Linear", stage=STAGE)
    features = module.in_features if by_rows else module.out_features
    if features % ranks:
        raise ConfigError(
            f"Plan: the {features} features of {name} can't be shared by {ranks} ranks", stage=STAGE
        )
