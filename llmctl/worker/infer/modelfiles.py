"""What the front needs of a model beside its weights: tokenizer, chat template, number of ids."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.wire.serving import BUILTIN, VLLM
from llmctl.worker.hf.export import small_files
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.infer.text import Vocabulary, vocabulary
from llmctl.worker.infer.vllm.source import vllm_folder


@dataclass(frozen=True)
class ModelText:
    """Tokenizer of one model, and how many ids it knows."""

    words: Vocabulary
    vocab_size: int


def read_model(uri: str, engine: str = BUILTIN) -> ModelText:
    """The text side of the model at `uri`; no weight is read. Blocks; imports torch.

    Raises:
        LlmctlError: no model there, none with a tokenizer, or not one that `engine` can read.
    """
    if engine == VLLM:
        folder = vllm_folder(uri)
        return ModelText(words=vocabulary(folder.small_files()), vocab_size=folder.vocab_size)
    with open_weights(uri) as weights:
        files = small_files(weights, "fp32")
        return ModelText(words=vocabulary(files), vocab_size=weights.config.vocab_size)
