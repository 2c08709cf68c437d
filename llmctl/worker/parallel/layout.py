"""A layout: what of the model and of the data this rank holds, and how its gradients become the whole ones.

Two of them: whole copies (here), which every small job uses and which imports nothing more, and the mesh
(`mesh.py`) of FSDP2, tensor and pipeline parallelism in any product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import nn

from llmctl.errors import ConfigError
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.objective import Loss
from llmctl.worker.parallel.replicas import ReplicaGradients, broadcast
from llmctl.worker.precision import MixedPrecision
from llmctl.worker.session import Session
from llmctl.worker.step import Gradients, PlainRunner, Runner

if TYPE_CHECKING:  # importing the mesh costs a start that needs none half a second
    from torch.distributed.device_mesh import DeviceMesh

    from llmctl.worker.parallel.architecture import Architecture


class Layout(Protocol):
    """One rank's place in a mesh, and what follows from it.

    Attributes:
        data_rank, data_ranks: this rank's share of each global batch; tp and pp peers have the same one.
        counts: this rank's loss and tokens enter the sums over all ranks.
    """

    spec: ParallelSpec
    data_rank: int
    data_ranks: int
    counts: bool

    @property
    def mesh(self) -> DeviceMesh | None:
        """(pp, dp_replicate, dp_shard, tp); None for whole copies, which need none."""

    @property
    def loss_parallel(self) -> bool:
        """Logits stay split over the vocabulary."""

    def model(self, architecture: Architecture, recipe: RecipeSpec, precision: MixedPrecision) -> nn.Module:
        """This rank's part of the model with its first weights, the same model in every layout.

        Parameters have the full model's names; those that are shards are DTensors.
        """

    def align(self, model: nn.Module) -> None:
        """Make first weights equal bit by bit wherever ranks hold copies of the same ones."""

    def gradients(self, model: nn.Module) -> Gradients:
        """Sums gradients over the ranks."""

    def runner(
        self,
        model: nn.Module,
        recipe: RecipeSpec,
        gradients: Gradients,
        precision: MixedPrecision,
        objective: Loss,
    ) -> Runner:
        """Runs forward and backward passes."""


def open_layout(recipe: RecipeSpec, session: Session) -> Layout:
    """The layout that the recipe asks for; all ranks call this together.

    Raises:
        ConfigError: it is one for another number of ranks.
    """
    spec = recipe.parallel or ParallelSpec(dp_replicate=session.world)
    if spec.world != session.world:
        raise ConfigError(
            f"parallel: {spec.name} needs {spec.world} ranks, there are {session.world}",
            hint="leave dp_replicate out to fill up whatever ranks there are",
            stage="recipe",
        )
    if spec.is_replicas:
        return Replicas(spec, session)
    from llmctl.worker.parallel.mesh import Mesh

    return Mesh(spec, session)


class Replicas:
    """A whole model on every rank."""

    counts = True
    mesh = None
    loss_parallel = False

    def __init__(self, spec: ParallelSpec, session: Session) -> None:
        self.spec = spec
        self.data_rank = session.rank
        self.data_ranks = session.world
        self._session = session

    def model(self, architecture: Architecture, recipe: RecipeSpec, precision: MixedPrecision) -> nn.Module:
        return architecture.whole(recipe, self._session.device)

    def align(self, model: nn.Module) -> None:
        """Rank 0's weights for all: another kind of processor may round the random numbers otherwise."""
        if self._session.world > 1:
            broadcast(model.parameters(), source=0)

    def gradients(self, model: nn.Module) -> Gradients:
        return ReplicaGradients(model.parameters(), world=self._session.world)

    def runner(
        self,
        model: nn.Module,
        recipe: RecipeSpec,
        gradients: Gradients,
        precision: MixedPrecision,
        objective: Loss,
    ) -> Runner:
        return PlainRunner(
            model=model,
            gradients=gradients,
            precision=precision,
            objective=objective,
            micro_batch=recipe.micro_batch,
        )
