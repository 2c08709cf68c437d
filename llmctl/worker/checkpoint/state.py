"""What a checkpoint holds: weights, the optimizer's moments, random states. Tensors only, by flat names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmctl.worker.optim import AdamW

MODEL = "model."
OPTIMIZER = "optimizer."
RNG = "rng."


def training_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """The live tensors of a training: saved as they are, and loaded into."""
    tensors = model_tensors(model)
    tensors.update({OPTIMIZER + name: tensor for name, tensor in optimizer.state().items()})
    return tensors


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live weights alone, without frozen ones: what inference needs."""
    named = model.named_parameters()
    return {MODEL + name: parameter.detach() for name, parameter in named if parameter.requires_grad}


def random_tensors(rank: int, device: torch.device) -> dict[str, Tensor]:
    """This rank's random states as they are now; other ranks have other names."""
    tensors = {f"{RNG}{rank}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors[f"{RNG}{rank}.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def set_random_state(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Continue the random streams that `random_tensors` has caught."""
    for name, tensor in tensors.items():
        if name.endswith(".cpu"):
            torch.set_rng_state(tensor)
        elif name.endswith(".cuda"):
            torch.cuda.set_rng_state(tensor, device)
