"""A character model of your own, trained by `llmctl train`: one rank of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl import worker

WIDTH, VOCABULARY = 64, 256

# Which layers tp may share, what dp_shard gathers at a time, and where pp cuts; see docs/own-model.md.
PLAN = worker.Plan(columns=["*.up"], rows=["*.down"], blocks=["mix*"], cuts=["mix2"])


class Mix(nn.Module):
    """Looks back over eight characters, then mixes features."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv1d(WIDTH, WIDTH, 8)
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # [samples, characters, WIDTH]
        x = x + self.look(F.pad(x.transpose(1, 2), (7, 0))).transpose(1, 2)
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Model(nn.Sequential):
    """An nn.Sequential, so that a pipeline can cut it; its children have names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.mix1, self.mix2 = Mix(), Mix()
        self.head = nn.Linear(WIDTH, VOCABULARY)


def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over samples of each one's mean loss per character."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / targets.shape[1]


def decode(sample) -> tuple[Tensor, Tensor]:
    """One sample's files to (input, target): each character's target is the next one."""
    text = torch.tensor(list(sample.files["txt"]))
    return text[:-1], text[1:]


def prepare(job: worker.Job) -> worker.Run:
    data = worker.TarSamples(job, decode)
    return worker.prepare(job, model=Model, loss=loss_sum, data=data, plan=PLAN)


def train(job: worker.Job) -> int:
    return prepare(job).train()


if __name__ == "__main__":
    worker.main(train)
