"""The tokenizer of an exported model, as `transformers` wants it: also for one that was trained on bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmctl.storage.corpus.tokenizer import BYTES, ByteTokenizer
from llmctl.worker.hf.folder import TOKENIZER

EOS_TEXT = "<|endoftext|>"
_CONFIG = "tokenizer_config.json"


def tokenizer_files(
    carried: Mapping[str, bytes], data: Mapping[str, Any], *, max_length: int
) -> tuple[dict[str, bytes], int | None]:
    """(files to add to `carried`, the id that ends a text).

    Args:
        carried: files that the weights bring along, by name; a tokenizer_config.json among them stays.
        data: what a checkpoint says of the corpus: `tokenizer`, `tokenizer_file`, `eos`.
        max_length: tokens of a training sample.
    """
    eos = data.get("eos")
    if data.get("tokenizer") == BYTES and TOKENIZER not in carried:
        document = byte_tokenizer()
    else:
        entry = data.get("tokenizer_file") or {}
        found = carried.get(str(entry.get("path", TOKENIZER)))
        if found is None:
            return {}, eos
        document = json.loads(found)
    files = {TOKENIZER: _json(document)} if TOKENIZER not in carried else {}
    if _CONFIG not in carried:
        files[_CONFIG] = _json(_config(document, eos, max_length))
    return files, eos


def byte_tokenizer() -> dict[str, Any]:
    """Our `bytes` as a tokenizer.json: a byte-level BPE without merges, id b for byte b, and eos."""
    tokenizer = ByteTokenizer()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": tokenizer.eos,
                "content": EOS_TEXT,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(_byte_characters())},
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """The printable character by which a byte-level vocabulary writes each byte, as GPT-2 began it: printable
    Latin-1 stands for itself, the others follow from U+0100 on."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    found = []
    following = 0x100
    for byte in range(256):
        if byte in plain:
            found.append(chr(byte))
        else:
            found.append(chr(following))
            following += 1
    return found


def _config(document: Mapping[str, Any], eos: int | None, max_length: int) -> dict[str, Any]:
    """tokenizer_config.json for a tokenizer that came without one."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    added = {token["id"]: token["content"] for token in document.get("added_tokens") or ()}
    text = added.get(eos)
    if text is not None:
        config["eos_token"] = text
    return config


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()
