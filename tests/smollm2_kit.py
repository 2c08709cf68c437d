"""What tests with real weights share: SmolLM2-135M-Instruct, and what `transformers` says by it in fp32."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.hf_kit import library, loaded
from tests.lab import smollm2

TEXTS = ("The capital of France is", "def main():", "Once upon a time")
NEW = 12
"""Tokens of an answer."""
EXACT = 1e-4
"""Largest difference of log-probabilities that counts as equal, in fp32."""


@dataclass(frozen=True)
class Theirs:
    """A prompt's ids and the log-probability of each but the first; the greedy answer's ids, their
    log-probabilities, and the answer as text."""

    prompt: list[int]
    scores: list[float]
    tokens: list[int]
    logprobs: list[float]
    text: str


def real_model() -> Path:
    """The folder of the weights, made where it is not there yet."""
    library("transformers")
    library("gguf")
    if not smollm2.folder().is_dir():
        subprocess.run(smollm2.COMMAND, check=True, timeout=500)
    return smollm2.folder()


@torch.no_grad()
def transformers_says(model: Path) -> dict[str, Theirs]:
    """For each of TEXTS; no token ends an answer early."""
    words, theirs = library("transformers").AutoTokenizer.from_pretrained(model), loaded(model)
    found = {}
    for text in TEXTS:
        ids = words(text, return_tensors="pt")["input_ids"]
        size = ids.shape[1]
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=None
        )
        chances = torch.log_softmax(theirs(out).logits[0, :-1], dim=-1)
        each = chances.gather(1, out[0, 1:].unsqueeze(1)).squeeze(1).tolist()
        new = out[0, size:].tolist()
        found[text] = Theirs(
            prompt=ids[0].tolist(),
            scores=each[: size - 1],
            tokens=new,
            logprobs=each[size - 1 :],
            text=str(words.decode(new, skip_special_tokens=True)),
        )
    return found
