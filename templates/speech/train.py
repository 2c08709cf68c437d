"""A speech recogniser of your own with CTC, trained by `llmctl train`: one rank of it."""

from __future__ import annotations

import io
import wave

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl import worker

FRAME, HOP, WIDTH = 160, 80, 64
LETTERS = "aeiouy"
BLANK, LONGEST = 0, 4

# Which layers tp may share, what dp_shard gathers at a time, and where pp cuts; see docs/own-model.md.
PLAN = worker.Plan(columns=["*.up"], rows=["*.down"], blocks=["listen", "think*"], cuts=["think1"])


class Listen(nn.Module):
    """A recurrent layer over the frames, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FRAME // 2 + 1, WIDTH // 2, batch_first=True, bidirectional=True)

    def forward(self, frames: Tensor) -> Tensor:  # [samples, frames, bands] -> [samples, frames, WIDTH]
        return self.rnn(frames)[0]


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
        self.listen = Listen()
        self.think1, self.think2 = Think(), Think()
        self.head = nn.Linear(WIDTH, len(LETTERS) + 1)


def loss_sum(logits: Tensor, words: Tensor) -> Tensor:
    """The sum over samples of the CTC loss; words are padded with BLANK."""
    likely = F.log_softmax(logits, dim=-1).transpose(0, 1)
    frames = torch.full((len(words),), logits.shape[1])
    return F.ctc_loss(likely, words, frames, (words != BLANK).sum(dim=1), blank=BLANK, reduction="sum")


def decode(sample) -> tuple[Tensor, Tensor]:
    """One sample's files to (spectrum [frames, bands], letters [LONGEST])."""
    with wave.open(io.BytesIO(sample.files["wav"])) as file:
        sound = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    frames = (sound.float() / 32768).unfold(0, FRAME, HOP) * torch.hann_window(FRAME)
    spectrum = torch.log10(torch.fft.rfft(frames).abs() + 1e-3)
    word = [1 + LETTERS.index(letter) for letter in sample.files["txt"].decode()]
    return spectrum, torch.tensor(word + [BLANK] * (LONGEST - len(word)))


def prepare(job: worker.Job) -> worker.Run:
    data = worker.TarSamples(job, decode)
    return worker.prepare(job, model=Model, loss=loss_sum, data=data, plan=PLAN)


def train(job: worker.Job) -> int:
    return prepare(job).train()


if __name__ == "__main__":
    worker.main(train)
