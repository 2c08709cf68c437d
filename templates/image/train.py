"""An image classifier of your own, trained by `llmctl train`: one rank of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl import worker

SIZE, WIDTH = 16, 128

# Which layers tp may share, what dp_shard gathers at a time, and where pp cuts; see docs/own-model.md.
PLAN = worker.Plan(columns=["*.up"], rows=["*.down"], blocks=["look", "think*"], cuts=["think1"])


class Look(nn.Module):
    """Convolutions; GroupNorm, because what a BatchNorm computes depends on how the batch is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.shapes = nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.out = nn.Linear(16 * (SIZE // 2) ** 2, WIDTH)

    def forward(self, images: Tensor) -> Tensor:  # [samples, 1, SIZE, SIZE] -> [samples, WIDTH]
        x = F.relu(self.norm(self.edges(images)))
        return self.out(F.relu(self.shapes(x)).flatten(1))


class Think(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Model(nn.Sequential):
    """An nn.Sequential, so that a pipeline can cut it; its children have names."""

    def __init__(self) -> None:
        super().__init__()
        self.look = Look()
        self.think1, self.think2 = Think(), Think()
        self.head = nn.Linear(WIDTH, 10)


def loss_sum(logits: Tensor, digits: Tensor) -> Tensor:
    """The sum over samples of the classifier's loss."""
    return F.cross_entropy(logits, digits, reduction="sum")


def decode(sample) -> tuple[Tensor, Tensor]:
    """One sample's files to (image [1, SIZE, SIZE] from 0 to 1, digit)."""
    pixels = torch.tensor(list(sample.files["pgm"][-SIZE * SIZE :]))
    return pixels.view(1, SIZE, SIZE) / 255, torch.tensor(int(sample.files["cls"]))


def prepare(job: worker.Job) -> worker.Run:
    data = worker.TarSamples(job, decode)
    return worker.prepare(job, model=Model, loss=loss_sum, data=data, plan=PLAN)


def train(job: worker.Job) -> int:
    return prepare(job).train()


if __name__ == "__main__":
    worker.main(train)
