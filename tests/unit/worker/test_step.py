"""A step's result must depend on the samples alone, not on how they are cut into pieces."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from llmctl.wire.recipe import OptimizerSpec
from llmctl.worker.data import to_batch
from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.decoder import Decoder, initialise, make_decoder
from llmctl.worker.objective import Objective
from llmctl.worker.optim import AdamW
from llmctl.worker.parallel.replicas import ReplicaGradients
from llmctl.worker.precision import MixedPrecision
from llmctl.worker.step import Batch, PlainRunner, Stepper, micro_batches

FP32 = MixedPrecision(device_type="cpu", bf16=False, reason="")
CONFIG = ModelConfig(vocab_size=64, dim=16, layers=2, heads=2, kv_heads=1, ffn_dim=32)


def make_model() -> Decoder:
    model = make_decoder(CONFIG, torch.device("cpu"))
    initialise(model, seed=0)
    return model


def stepper(model: Decoder, micro_batch: int, aggregation: str = "tokens") -> Stepper:
    gradients, objective = ReplicaGradients(model.parameters(), world=1), Objective(aggregation)
    return Stepper(
        runner=PlainRunner(
            model=model,
            gradients=gradients,
            precision=FP32,
            objective=objective,
            micro_batch=micro_batch,
        ),
        optimizer=AdamW(model.named_parameters(), OptimizerSpec()),
        gradients=gradients,
        objective=objective,
        world=1,
    )


def batch(samples: int = 7) -> Batch:
    tokens = torch.randint(0, 64, (samples, 13), generator=torch.Generator().manual_seed(1))
    return Batch(inputs=tokens[:, :-1], targets=tokens[:, 1:])


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
def test_accumulation_equals_one_large_batch(micro_batch: int) -> None:
    """Also where the last micro-batch is smaller: the mean is over tokens, not over pieces."""
    whole, pieces = make_model(), make_model()
    first = stepper(whole, 7).run(batch(), lr=1e-2).read()
    second = stepper(pieces, micro_batch).run(batch(), lr=1e-2).read()
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
    assert second.tokens == first.tokens == 7 * 12


def test_the_norm_reported_is_that_of_the_mean_loss() -> None:
    """grad_norm is what autograd gives for the plain mean over all tokens, before clipping."""
    model, data = make_model(), batch()
    peer = copy.deepcopy(model)
    torch.nn.functional.cross_entropy(peer(data.inputs).flatten(0, 1), data.targets.flatten()).backward()
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in peer.parameters() if p.grad is not None))
    assert stepper(model, 2).run(data, lr=1e-2).read().grad_norm == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_changes_no_weight() -> None:
    """The weights of the last good step survive a step whose gradient is not a number."""
    model = make_model()
    with torch.no_grad():
        model.norm.weight[0] = float("inf")
    before = model.embed.weight.detach().clone()
    numbers = stepper(model, 2).run(batch(), lr=1e-2).read()
    assert not math.isfinite(numbers.grad_norm)
    assert torch.equal(model.embed.weight, before)


def test_a_vote_to_stop_is_counted() -> None:
    """The wish to stop travels with the numbers, so all ranks see it at the same step."""
    numbers = stepper(make_model(), 2).run(batch(), lr=1e-2, stop_asked=True).read()
    assert numbers.stop_asked
    assert not stepper(make_model(), 2).run(batch(), lr=1e-2).read().stop_asked


def test_an_empty_share_has_no_pieces() -> None:
    """A rank without samples runs no forward pass."""
    empty = to_batch(bytearray(), torch.uint16, 13, torch.device("cpu"))
    assert empty.inputs.shape == (0, 12)
    assert micro_batches(empty, 4) == []


def test_raw_tokens_become_inputs_and_targets_one_to_the_right() -> None:
    """Little-endian uint16 rows: the target of each token is the next one; large ids stay positive."""
    raw = bytearray(b"".join(n.to_bytes(2, "little") for n in (1, 2, 65535, 4, 5, 6)))
    made = to_batch(raw, torch.uint16, 3, torch.device("cpu"))
    assert made.inputs.tolist() == [[1, 2], [4, 5]]
    assert made.targets.tolist() == [[2, 65535], [5, 6]]
