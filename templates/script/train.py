"""Data-parallel training as any torchrun tutorial has it; runs without llmctl too.

    torchrun --nproc-per-node 2 train.py --steps 50

It fits a small network to a fixed random function and saves a checkpoint; a new start goes on from there.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

try:
    from llmctl.worker import report  # shows step and loss in `llmctl status`
except ImportError:

    def report(**_numbers: object) -> None:
        """Outside llmctl there is nobody to tell."""


def main() -> None:
    args = parse_args()
    device = connect()
    torch.manual_seed(0)  # every rank must start from the same weights and the same teacher
    teacher = make_net().to(device)
    net = make_net().to(device)
    first_step = load(args.checkpoint, net, device)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for step in range(first_step + 1, args.steps + 1):
        loss = train_step(model, teacher, optimizer, batch(step, args.batch, device))
        report(step=step, total=args.steps, loss=loss)
        if step % args.every == 0 or step == args.steps:
            say(f"step {step}/{args.steps} loss {loss:.5f}")
            save(args.checkpoint, net, step)
    dist.destroy_process_group()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="samples per step and rank")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    # The run directory outlives a restart; the script's own folder is a fresh copy for each run.
    folder = Path(os.environ.get("LLMCTL_RUN_DIR", "."))
    parser.add_argument("--checkpoint", type=Path, default=folder / "checkpoints" / "script.pt")
    return parser.parse_args()


def connect() -> torch.device:
    """Join the other ranks. The time-out turns a lost peer into an error instead of a hang."""
    timeout = timedelta(seconds=float(os.environ.get("LLMCTL_PG_TIMEOUT_S", "600")))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout)
        return device
    dist.init_process_group("gloo", timeout=timeout)
    return torch.device("cpu")


def make_net() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))


def batch(step: int, size: int, device: torch.device) -> torch.Tensor:
    """Inputs of one step: other ones on every rank, the same ones when a step is repeated."""
    seed = step * dist.get_world_size() + dist.get_rank()
    return torch.randn(size, 16, generator=torch.Generator().manual_seed(seed)).to(device)


def train_step(
    model: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor
) -> float:
    with torch.no_grad():
        wanted = teacher(inputs)
    loss = nn.functional.mse_loss(model(inputs), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean.item() / dist.get_world_size()


def save(path: Path, net: nn.Module, step: int) -> None:
    """Written beside and renamed: a half-written checkpoint is never found."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        torch.save({"net": net.state_dict(), "step": step}, beside)
        beside.replace(path)


def load(path: Path, net: nn.Module, device: torch.device) -> int:
    """The step to go on from: 0 unless every host has a checkpoint of the same step."""
    saved = torch.load(path, map_location=device, weights_only=True) if path.exists() else {"step": 0}
    least = torch.tensor([saved["step"], -saved["step"]], device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    if least[0].item() != -least[1].item() or least[0].item() == 0:
        return 0
    net.load_state_dict(saved["net"])
    return int(saved["step"])


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
