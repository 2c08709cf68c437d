"""The model that vLLM is pointed at: a Hugging Face folder on this host, of any family that vLLM knows.

So nothing here asks whether our own decoder could be that model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError, NotFoundError
from llmctl.storage.files import open_store
from llmctl.wire.huggingface import CONFIG_FILE
from llmctl.worker.hf.folder import read_document
from llmctl.worker.hf.weights import find_checkpoint

STAGE = "vllm"
BLOCK = 128
"""Positions that vLLM's cache on CPUs gives a request at a time."""
_SMALL = frozenset({CONFIG_FILE, "tokenizer.json", "tokenizer_config.json", "generation_config.json"})
_TEMPLATE = ".jinja"


@dataclass(frozen=True)
class VllmFolder:
    """A model's folder, and what its config.json says."""

    path: Path
    config: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        """Raises ConfigError."""
        found = self._text("vocab_size")
        if found is None:
            raise ConfigError(f"{self.path}: {CONFIG_FILE} has no vocab_size", stage=STAGE)
        return found

    @property
    def positions(self) -> int | None:
        """Positions that the model was made for, where it says so."""
        return self._text("max_position_embeddings")

    def small_files(self) -> dict[str, bytes]:
        """Tokenizer, chat template and settings, by name."""
        files = (path for path in self.path.iterdir() if path.name in _SMALL or path.suffix == _TEMPLATE)
        return {path.name: path.read_bytes() for path in files}

    def cache_bytes(self, *, slots: int, length: int, itemsize: int) -> int | None:
        """Of keys and values for so many requests of that length; None: this shape is not known here."""
        layers, heads = self._text("num_hidden_layers"), self._text("num_attention_heads")
        width = self._text("hidden_size")
        if layers is None or heads is None or width is None:
            return None
        kv = self._text("num_key_value_heads") or heads
        head = self._text("head_dim") or width // heads
        blocks = slots * (-(-length // BLOCK) + 1) + 1
        return 2 * layers * kv * head * itemsize * blocks * BLOCK

    def _text(self, key: str) -> int | None:
        """A number of the text model; one with images too has it a level deeper."""
        inner = self.config.get("text_config")
        for place in (self.config, inner if isinstance(inner, Mapping) else {}):
            if isinstance(value := place.get(key), int):
                return value
        return None


def vllm_folder(uri: str) -> VllmFolder:
    """The folder at `uri`.

    Raises:
        ConfigError: a store's URL, or a checkpoint of ours: vLLM reads neither.
        NotFoundError: no model there.
    """
    store = open_store(uri)
    if store.local_root is None:
        hint = "copy it to the same path on every host, or `engine: builtin`, which reads it there"
        raise ConfigError(f"{store.uri}: vLLM reads a folder of the host only", hint=hint, stage=STAGE)
    if find_checkpoint(store) is not None:
        hint = (
            f"llmctl ckpt export {store.uri} FOLDER makes such a folder; `engine: builtin` reads it as it is"
        )
        raise ConfigError(
            f"{store.uri} is a checkpoint, vLLM reads Hugging Face folders", hint=hint, stage=STAGE
        )
    if not store.exists(CONFIG_FILE):
        hint = "name a Hugging Face folder on the host"
        raise NotFoundError(f"{store.uri} holds no {CONFIG_FILE}", hint=hint, stage=STAGE)
    return VllmFolder(path=store.local_root, config=read_document(store, CONFIG_FILE))


def check_length(folder: VllmFolder, length: int) -> None:
    """Refuse more positions than the model has: vLLM would end with a traceback. Raises ConfigError."""
    if folder.positions is not None and length > folder.positions:
        raise ConfigError(
            f"infer.max_tokens is {length}, the model has {folder.positions} positions",
            hint=f"--set infer.max_tokens={folder.positions}",
            stage=STAGE,
        )
