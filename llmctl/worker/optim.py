"""AdamW on the fused kernel, its learning-rate schedule, and the gradient norm.

Why not torch.optim: building one of its optimizers imports torch._dynamo, a full second of every start
(measured, torch 2.13). The kernel below is the one that `torch.optim.AdamW(fused=True)` calls, and a test
holds the two bitwise equal. It also divides the gradients as it reads them: one pass over memory less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmctl.wire.recipe import OptimizerSpec


def lr_at(step: int, spec: OptimizerSpec, total: int) -> float:
    """The rate of step `step` (counted from 1): linear warm-up, then a cosine down to min_lr_ratio."""
    if step <= spec.warmup_steps:
        return spec.lr * step / spec.warmup_steps
    progress = min(1.0, (step - spec.warmup_steps) / max(1, total - spec.warmup_steps))
    floor = spec.lr * spec.min_lr_ratio
    return floor + (spec.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(slots=True, kw_only=True)
class _Group:
    """Parameters that share a weight decay, with what this rank holds of their two moments."""

    params: list[nn.Parameter]
    weight_decay: float
    first: list[Tensor]
    second: list[Tensor]


class AdamW:
    """AdamW over the named parameters of a model, or over this rank's shards of them where they are DTensors;
    weight decay on matrices only."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], spec: OptimizerSpec) -> None:
        self.spec = spec
        named = list(named)
        matrices = [(name, p) for name, p in named if p.dim() >= 2]
        vectors = [(name, p) for name, p in named if p.dim() < 2]
        self._steps = torch.zeros((), dtype=torch.float32, device=named[0][1].device)
        self._state: dict[str, Tensor] = {"steps": self._steps}
        self._groups = [self._group(matrices, spec.weight_decay), self._group(vectors, 0.0)]

    def _group(self, named: list[tuple[str, nn.Parameter]], weight_decay: float) -> _Group:
        group = _Group(params=[], weight_decay=weight_decay, first=[], second=[])
        for name, parameter in named:
            group.params.append(parameter)
            for moment, kept in (("first", group.first), ("second", group.second)):
                whole = torch.zeros_like(parameter, requires_grad=False)
                self._state[f"{name}.{moment}"] = whole
                kept.append(local(whole))
        return group

    def state(self) -> dict[str, Tensor]:
        """The live moments by `<parameter>.<first|second>`, and `steps`: save these, load into these."""
        return self._state

    @torch.no_grad()
    def step(self, lr: float, *, divisor: Tensor, skip: Tensor) -> None:
        """One update with each gradient divided by `divisor`.

        Args:
            divisor: fp32 scalar on the parameters' device.
            skip: fp32 scalar there; 1.0 leaves weights and moments untouched, without asking the host.
        """
        self._steps += 1.0
        for group in self._groups:
            if group.params:
                self._step_group(group, lr, divisor, skip)
        self._steps -= skip

    def _step_group(self, group: _Group, lr: float, divisor: Tensor, skip: Tensor) -> None:
        torch._fused_adamw_(
            # Asked for at every step: FSDP may move a shard to other memory at the first forward pass.
            [local(parameter) for parameter in group.params],
            [_gradient(parameter) for parameter in group.params],
            group.first,
            group.second,
            [],
            [self._steps] * len(group.params),
            lr=lr,
            beta1=self.spec.betas[0],
            beta2=self.spec.betas[1],
            weight_decay=group.weight_decay,
            eps=self.spec.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=skip,
        )


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient, or zeros for a parameter that no sample has touched: every rank must update alike."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local(parameter.grad)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a DTensor, without a copy; any other tensor itself. Knows a DTensor by its
    method, because importing the class costs a start that has none half a second."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        held: Tensor = tensor.to_local()
    return held


def like(tensor: Tensor, parameter: Tensor, *, moved: bool = False) -> Tensor:
    """`tensor`, which has the form of what this rank holds of `parameter`, as a tensor of its kind.

    Args:
        moved: it may lie on another device than the mesh of `parameter`, such as a copy in host memory.
    """
    if not hasattr(parameter, "to_local"):
        return tensor
    from torch.distributed.tensor import DTensor

    if moved:
        # `from_local` would move it back to the mesh's device.
        spec = parameter._spec  # type: ignore[attr-defined]
        made: Tensor = DTensor(tensor, spec, requires_grad=False)  # type: ignore[no-untyped-call]
        return made
    wrapped: Tensor = DTensor.from_local(
        tensor,
        parameter.device_mesh,  # type: ignore[attr-defined]
        parameter.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return wrapped


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, as a scalar on their device; no host synchronisation."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """What a gradient of norm `norm` is multiplied with so that it stays within `limit`; 0: no limit."""
    if limit == 0:
        return torch.ones_like(norm)
    return torch.clamp(limit / (norm + 1e-6), max=1.0)
