"""A model of one's own: names of a plan, the order of samples, the loss over padding, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.errors import ConfigError
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker import Plan
from llmctl.worker.objective import IGNORE
from llmctl.worker.own.data import OwnBatches
from llmctl.worker.own.loss import SampleLoss
from llmctl.worker.own.model import OwnArchitecture
from llmctl.worker.own.plan import matching

CPU = torch.device("cpu")
RECIPE = RecipeSpec(global_batch=6, seed=3)


def test_the_interface_costs_a_script_no_torch_until_it_trains() -> None:
    """A script that only reports starts as fast as before; what it misspells is named."""
    code = "import sys, llmctl.worker as w; w.report, w.Plan, w.main; assert 'torch' not in sys.modules"
    code += "; w.prepair"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "no attribute 'prepair'" in done.stderr


def test_a_star_is_one_part_of_a_name() -> None:
    """`block*` means the blocks and nothing inside them."""
    names = ["", "block1", "block1.up", "block2", "head"]
    assert matching(names, ["block*"]) == ["block1", "block2"]
    assert matching(names, ["*.up", "head"]) == ["block1.up", "head"]


def taken(step: int, rank: int, ranks: int) -> list[int]:
    data = [(torch.tensor([number]), torch.tensor(number)) for number in range(8)]
    batches = OwnBatches(data, RECIPE, CPU, rank, ranks, step)
    return [int(target) for target in next(iter(batches)).targets]


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_steps_have_the_same_samples_on_any_number_of_ranks(ranks: int) -> None:
    """Shares put together are one process's batch, a rank without any included; `samples_of` foretells it."""
    for step in range(4):
        whole = taken(step, 0, 1)
        assert [number for rank in range(ranks) for number in taken(step, rank, ranks)] == whole
    foretold = OwnBatches([(torch.ones(1), torch.ones(1))] * 8, RECIPE, CPU, 0, 1, 0).samples_of(4)
    assert [ref.start for ref in foretold] == whole


def test_every_sample_comes_once_per_epoch_in_another_order() -> None:
    """Four steps of six are three epochs of eight."""
    stream = [number for step in range(4) for number in taken(step, 0, 1)]
    epochs = [stream[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_rank_without_samples_has_an_empty_batch_of_the_right_form() -> None:
    """Its micro-batches of padding are made from it."""
    data = [(torch.zeros(3, 5), torch.zeros(2))]
    recipe = replace(RECIPE, global_batch=1)
    (batch,) = islice(OwnBatches(data, recipe, CPU, 0, 2, 0), 1)
    assert (batch.inputs.shape, batch.targets.shape) == ((0, 3, 5), (0, 2))


def sum_of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    assert len(outputs)
    assert not (targets == IGNORE).any()
    return F.mse_loss(outputs, targets, reduction="sum")


def test_padding_never_reaches_the_loss_and_keeps_the_graph() -> None:
    """Samples that are all padding count for nothing; only such ones still give a gradient of zeros."""
    loss = SampleLoss(sum_of_squares)
    outputs = torch.ones(3, 2, requires_grad=True)
    targets = torch.tensor([[0.0, 0.0], [IGNORE, IGNORE], [1.0, 3.0]])
    assert loss.begin(targets)[0] == 2
    assert loss(outputs, targets) == 2 + 4
    nothing = loss(outputs, torch.full((3, 2), float(IGNORE)))
    nothing.backward()
    assert outputs.grad is not None
    assert not outputs.grad.any()
    assert loss.begin(torch.zeros(0, 2))[0] == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "BatchNorm1d"),
        (lambda: nn.Linear(2, 2).double(), "not float32"),
    ],
)
def test_what_would_train_another_model_in_every_layout_is_refused(make: object, words: str) -> None:
    """Statistics of a batch depend on its cuts; weights are fp32 whatever the precision."""
    with pytest.raises(ConfigError, match=words):
        OwnArchitecture(make=make, plan=Plan()).whole(RECIPE, CPU)  # type: ignore[arg-type]


def test_the_seed_makes_the_model_and_leaves_the_random_stream_alone() -> None:
    """All ranks begin alike, and a resume draws what it would have drawn."""
    architecture = OwnArchitecture(make=lambda: nn.Linear(4, 4), plan=Plan())
    before = torch.get_rng_state()
    one, other = (architecture.whole(RECIPE, CPU) for _ in range(2))
    assert torch.equal(one.weight, other.weight)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("cuts", [["b", "d"], ["nope"], ["a"], ["c", "b"]])
def test_cuts_that_make_no_stages_are_refused(cuts: list[str]) -> None:
    """Too many, unknown, an empty first stage, out of order: named, not guessed."""
    stages = 3 if cuts == ["c", "b"] else 2
    with pytest.raises(ConfigError, match=r"Plan\.cuts"):
        OwnArchitecture(make=nn.Identity, plan=Plan(cuts=cuts))._starts(list("abcd"), stages)


def test_without_cuts_stages_have_equally_many_children() -> None:
    """Five children in two stages: two and three."""
    assert OwnArchitecture(make=nn.Identity, plan=Plan())._starts(list("abcde"), 2) == [2]
