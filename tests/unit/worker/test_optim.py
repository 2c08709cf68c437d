"""The optimizer against torch's own, and the arithmetic around it."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmctl.wire.recipe import OptimizerSpec
from llmctl.worker.optim import AdamW, clip_factor, global_norm, lr_at

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


def two_alike() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    return first, second


def backward(model: nn.Module, seed: int, factor: float = 1.0) -> None:
    model.zero_grad()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    (model(x).square().sum() * factor).backward()


def test_updates_are_bitwise_those_of_torch_adamw() -> None:
    """Leaving torch.optim out saves a second of start and changes no bit of any weight."""
    ours, theirs = two_alike()
    spec = OptimizerSpec(weight_decay=0.1)
    optimizer = AdamW(ours.named_parameters(), spec)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch.optim imports
        peer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-2,
            betas=(0.9, 0.95),
            eps=1e-8,
            fused=True,
        )
        for seed in range(10):
            backward(ours, seed)
            backward(theirs, seed)
            optimizer.step(1e-2, divisor=ONE, skip=ZERO)
            peer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_divisor_divides_the_gradients() -> None:
    """A gradient sum over N tokens, divided by N in the kernel, is the mean gradient."""
    ours, theirs = two_alike()
    one, other = (AdamW(model.named_parameters(), OptimizerSpec()) for model in (ours, theirs))
    backward(ours, 1, factor=64.0)
    backward(theirs, 1)
    one.step(1e-2, divisor=torch.tensor(64.0), skip=ZERO)
    other.step(1e-2, divisor=ONE, skip=ZERO)
    for mine, theirs_ in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, theirs_)


def test_a_skipped_step_leaves_no_trace() -> None:
    """After a gradient that is not finite, weights, moments and the step count are as before."""
    model, _ = two_alike()
    optimizer = AdamW(model.named_parameters(), OptimizerSpec())
    backward(model, 1)
    optimizer.step(1e-2, divisor=ONE, skip=ZERO)
    weights = [p.detach().clone() for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    backward(model, 2, factor=float("nan"))
    optimizer.step(1e-2, divisor=ONE, skip=ONE)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(torch.equal(tensor, optimizer.state()[name]) for name, tensor in state.items())


def test_only_matrices_decay() -> None:
    """With gradients of zero a matrix shrinks, a bias or a norm weight stays."""
    model = nn.Linear(3, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    AdamW(model.named_parameters(), OptimizerSpec(weight_decay=0.5)).step(0.1, divisor=ONE, skip=ZERO)
    torch.testing.assert_close(model.weight, before["weight"] * 0.95)
    assert torch.equal(model.bias, before["bias"])


def test_the_norm_is_that_of_all_gradients_as_one_vector() -> None:
    """The global norm does not depend on how gradients lie in tensors."""
    tensors = [torch.randn(3, 4), torch.randn(7), torch.randn(())]
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    torch.testing.assert_close(global_norm(tensors), whole.norm())


@pytest.mark.parametrize(("norm", "limit", "factor"), [(4.0, 1.0, 0.25), (0.5, 1.0, 1.0), (9.0, 0.0, 1.0)])
def test_clipping_only_shortens(norm: float, limit: float, factor: float) -> None:
    """A gradient within the limit stays as it is; a limit of 0 is none."""
    assert clip_factor(torch.tensor(norm), limit).item() == pytest.approx(factor, rel=1e-5)


def test_the_schedule_warms_up_and_ends_at_its_floor() -> None:
    """Linear to the peak at the last warm-up step, then down a cosine to lr * min_lr_ratio."""
    spec = OptimizerSpec(lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    assert lr_at(1, spec, 100) == pytest.approx(0.1)
    assert lr_at(10, spec, 100) == pytest.approx(1.0)
    assert lr_at(55, spec, 100) == pytest.approx(0.55)
    assert lr_at(100, spec, 100) == pytest.approx(0.1)


@given(warmup=st.integers(0, 50), total=st.integers(1, 200), step=st.integers(1, 250))
def test_the_rate_stays_between_zero_and_its_peak(warmup: int, total: int, step: int) -> None:
    """Whatever the lengths, also with a warm-up longer than the run, the rate is sane."""
    spec = OptimizerSpec(lr=2e-3, warmup_steps=warmup)
    assert 0 < lr_at(step, spec, total) <= 2e-3
