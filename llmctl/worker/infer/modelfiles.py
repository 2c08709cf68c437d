"""What the front needs of a model beside its weights: shape, tokenizer, chat template."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.wire.model import ModelConfig
from llmctl.worker.hf.export import small_files
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.infer.text import Vocabulary, vocabulary


@dataclass(frozen=True)
class ModelText:
    """`words` and shape of one model."""

    words: Vocabulary
    config: ModelConfig


def read_model(uri: str) -> ModelText:
    """The text side of the model at `uri`; no weight is read. Blocks; imports torch.

    Raises:
        LlmctlError: no model there, or none with a tokenizer.
    """
    with open_weights(uri) as weights:
        files = small_files(weights, "fp32")
        return ModelText(words=vocabulary(files), config=weights.config)
