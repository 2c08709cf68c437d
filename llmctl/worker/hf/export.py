"""Writing a model as a Hugging Face folder: safetensors, config.json, tokenizer; or its adapters for `peft`.

Tensors pass through one at a time. `config.json` is written last: a folder without it is no model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from llmctl.errors import ConfigError
from llmctl.storage.faults import explained
from llmctl.storage.files import Store, open_store
from llmctl.storage.local import write_beside
from llmctl.wire.huggingface import CONFIG_FILE, to_hf
from llmctl.wire.recipe import LoraSpec
from llmctl.worker.hf.folder import INDEX, SINGLE, shapes
from llmctl.worker.hf.names import their_name
from llmctl.worker.hf.tensorfile import Planned, write_header, write_tensor
from llmctl.worker.hf.tokenizer import tokenizer_files
from llmctl.worker.hf.weights import Adapted, Checkpoint, Weights
from llmctl.worker.lora import A, B

STAGE = "export"
SHARD_BYTES = 5_000_000_000
"""Bytes of tensors in one file at most, as transformers has it; a tensor that is larger gets its own."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_PEFT_MATRIX = {A: "lora_A", B: "lora_B"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an export has made: names of its files, the weights' bytes, and numbers in the model."""

    files: tuple[str, ...]
    bytes: int
    parameters: int


def export_model(
    weights: Weights, uri: str, *, dtype: str, shard_bytes: int = SHARD_BYTES, overwrite: bool = False
) -> Written:
    """Write `weights` to `uri` as a folder that `transformers` loads.

    Raises:
        ConfigError: no such dtype, the place is taken, or no Hugging Face family is of this shape.
    """
    kind = _dtype(dtype)
    store = _empty_place(uri, CONFIG_FILE, overwrite=overwrite)
    files = small_files(weights, str(kind).removeprefix("torch."))
    planned = [
        Planned(name=their_name(name), dtype=kind, shape=shape)
        for name, shape in shapes(weights.config).items()
    ]
    names = {their_name(name): name for name in shapes(weights.config)}
    shards = split(planned, shard_bytes)
    for name, tensors in shards.items():
        with _writing(store, name) as target:
            offsets = write_header(target, tensors)
            for ours, tensor in weights.items([names[planned.name] for planned in tensors]):
                target.seek(offsets[their_name(ours)])  # sources have an order of their own
                write_tensor(target, tensor.to(kind))
    if len(shards) > 1:
        files[INDEX] = _index(shards)
    config = files.pop(CONFIG_FILE)
    for name, content in files.items():
        store.write_bytes(name, content)
    store.write_bytes(CONFIG_FILE, config)
    return Written(
        files=(*shards, *files, CONFIG_FILE),
        bytes=sum(tensor.bytes for tensor in planned),
        parameters=sum(tensor.bytes for tensor in planned) // kind.itemsize,
    )


def export_adapter(weights: Weights, uri: str, *, dtype: str, overwrite: bool = False) -> Written:
    """Write the adapters of `weights` alone, as `peft` loads them.

    Raises:
        ConfigError: there are none, no such dtype, or the place is taken.
    """
    if not isinstance(weights, Adapted):
        raise ConfigError(f"{weights.where} holds no adapters", hint="without --adapter-only", stage=STAGE)
    kind = _dtype(dtype)
    store = _empty_place(uri, ADAPTER_CONFIG, overwrite=overwrite)
    tensors = {_peft_name(name): tensor.to(kind) for name, tensor in weights.tensors.items()}
    planned = [Planned(name=name, dtype=kind, shape=tuple(tensor.shape)) for name, tensor in tensors.items()]
    with _writing(store, ADAPTER) as target:
        write_header(target, planned)
        for tensor in tensors.values():
            write_tensor(target, tensor)
    config = _peft_config(weights.spec, weights.base.where)
    store.write_bytes(ADAPTER_CONFIG, _json(config))
    return Written(
        files=(ADAPTER, ADAPTER_CONFIG),
        bytes=sum(tensor.bytes for tensor in planned),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )


def split(tensors: Sequence[Planned], limit: int) -> dict[str, list[Planned]]:
    """Files by name, each with tensors of at most `limit` bytes together where that can be."""
    groups: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.bytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def small_files(weights: Weights, dtype: str) -> dict[str, bytes]:
    """config.json, tokenizer and generation settings of the exported folder, by name."""
    carried = dict(weights.carried)
    base = json.loads(carried.pop(CONFIG_FILE)) if CONFIG_FILE in carried else None
    recipe, data = ({}, {}) if not isinstance(weights, (Checkpoint, Adapted)) else _trained_with(weights)
    length = int(recipe.get("sequence_length", 2048))
    tokenizer, eos = tokenizer_files(carried, data, max_length=length)
    config = to_hf(weights.config, dtype=dtype, max_positions=length, eos=eos, base=base)
    if "generation_config.json" not in carried and eos is not None:
        carried["generation_config.json"] = _json({"eos_token_id": eos})
    return {**carried, **tokenizer, CONFIG_FILE: _json(config)}


def _trained_with(weights: Checkpoint | Adapted) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = (weights.adapters if isinstance(weights, Adapted) else weights).manifest
    return manifest.recipe, manifest.data


def _index(shards: Mapping[str, Sequence[Planned]]) -> bytes:
    total = sum(tensor.bytes for tensors in shards.values() for tensor in tensors)
    places = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    return _json({"metadata": {"total_size": total}, "weight_map": places})


def _peft_name(ours: str) -> str:
    """`layers.0.attention.q.lora_a` as `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."""
    layer, _, matrix = ours.rpartition(".")
    theirs = their_name(f"{layer}.weight").removesuffix("weight")
    return f"{_PEFT_PREFIX}{theirs}{_PEFT_MATRIX[matrix]}.weight"


def _peft_config(spec: LoraSpec, base: str) -> dict[str, Any]:
    kinds = {"gate": "ffn", "up": "ffn", "down": "ffn"}
    full = [their_name(f"layers.0.{kinds.get(t, 'attention')}.{t}.weight") for t in spec.targets]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(name.split(".")[-2] for name in full),
    }


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"no dtype {name!r}; one of {', '.join(DTYPES)}", stage=STAGE)
    return DTYPES[name]


def _empty_place(uri: str, marker: str, *, overwrite: bool) -> Store:
    """The store at `uri`; what was there before is no whole model any more from here on.

    Raises:
        ConfigError: something is there, and it was not asked to be overwritten.
    """
    store = open_store(uri)
    present = [file.path for file in store.list()]
    if present and not overwrite:
        raise ConfigError(
            f"{store.uri} is not empty ({present[0]})",
            hint="name another folder, or --overwrite",
            stage=STAGE,
        )
    store.delete(marker)
    for path in present:
        if "/" not in path and path.endswith((".safetensors", ".safetensors.index.json")):
            store.delete(path)
    return store


@contextmanager
def _writing(store: Store, name: str) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file `name` when all of it is written."""
    if store.local_root is not None:
        path = store.local_root / name
        with explained("write", str(path)), write_beside(path) as target:
            yield target
        return
    with tempfile.TemporaryDirectory(prefix="llmctl-export-") as scratch:
        path = Path(scratch, name)
        with explained("write", str(path)), path.open("wb") as target:
            yield target
        store.put_file(path, name)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
