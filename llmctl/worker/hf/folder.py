"""A Hugging Face model folder in any store: its configuration, the files that go along, and its tensors.

Nothing is read before it is asked for, and tensors one at a time, so that a model needs no second copy of
itself in memory while it is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llmctl.errors import ConfigError, IntegrityError, LlmctlError, NotFoundError
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import digest_stream
from llmctl.wire.huggingface import CONFIG_FILE, from_hf
from llmctl.wire.manifests import FileEntry
from llmctl.wire.model import ModelConfig
from llmctl.worker.hf.names import EMBED, HEAD, THEIR_HEAD, is_derived, prefix_of, their_name
from llmctl.worker.hf.tensorfile import Entry, TensorFile

STAGE = "model"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"

CARRIED = (
    CONFIG_FILE,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Small files that travel with the weights, into every checkpoint and out again at an export."""

_SLOW_TOKENIZERS = ("vocab.json", "merges.txt", "tokenizer.model")
"""Carried only where no tokenizer.json says the same."""

_LOADABLE = frozenset({"F64", "F32", "F16", "BF16"})
_OTHER_FORMATS = re.compile(r"[^/]+\.(bin|pt|pth|gguf|h5|msgpack)")
_NUMBER = re.compile(r"(?<=layers\.)\d+")


@dataclass(frozen=True, kw_only=True)
class HfFolder:
    """One model folder whose `config.json` was read and understood.

    Attributes:
        document: `config.json` as it stands there.
        config: the same as our decoder's shape.
        shards: names of the safetensors files.
    """

    store: Store
    document: Mapping[str, Any]
    config: ModelConfig
    shards: tuple[str, ...]
    present: frozenset[str]

    @property
    def where(self) -> str:
        return self.store.uri

    @cached_property
    def carried(self) -> dict[str, bytes]:
        """The small files that go along, by name."""
        slow = () if TOKENIZER in self.present else _SLOW_TOKENIZERS
        return {name: self.store.read_bytes(name) for name in (*CARRIED, *slow) if name in self.present}

    def fingerprint(self) -> tuple[FileEntry, ...]:
        """Size and hash of configuration and weights: reads every byte once."""
        found = []
        for name in (CONFIG_FILE, *self.shards):
            with self.store.open_read(name) as stream:
                found.append(digest_stream(stream).entry(name))
        return tuple(found)

    def items(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """(our name, tensor as stored) of each of `names`, in the order in which they lie in the files.

        Raises:
            IntegrityError: tensors are missing, unexpected, mis-shaped, quantised or cut short; names all.
        """
        prefix = prefix_of(self._places)
        wanted = {their_name(name, prefix): name for name in names}
        self.check()
        for shard in self.shards:
            mine = [entry for entry in self._tables[shard] if entry.name in wanted]
            if not mine:
                continue
            with self.store.open_read(shard) as stream:
                file = TensorFile(stream, where=self.store.where(shard), size=self.store.size(shard))
                for entry in sorted(mine, key=lambda entry: entry.start):
                    yield wanted[entry.name], file.read(entry.name)

    def check(self) -> None:
        """Compare what the files hold with what the configuration promises, without reading any weight.

        Raises:
            IntegrityError: names every tensor that does not fit.
        """
        if self._problems:
            raise IntegrityError(
                f"{self.where} is not what its {CONFIG_FILE} says: {'; '.join(self._problems)}",
                hint="was it saved whole, and is it a causal language model of this family?",
                stage=STAGE,
            )

    @cached_property
    def _problems(self) -> tuple[str, ...]:
        return tuple(self._find_problems())

    def _find_problems(self) -> Iterator[str]:
        found = {entry.name: entry for table in self._tables.values() for entry in table}
        wanted = {their_name(name, prefix_of(found)): shape for name, shape in shapes(self.config).items()}
        allowed = {THEIR_HEAD} if self.config.tied_head else set()
        missing = [name for name in wanted if name not in found]
        extra = [n for n in found if n not in wanted and n not in allowed and not is_derived(n)]
        if missing:
            yield f"missing {shortened(missing)}"
        if extra:
            yield f"unexpected {shortened(extra)}"
        for name, shape in wanted.items():
            entry = found.get(name)
            if entry is not None and entry.shape != shape:
                yield f"{name} is {list(entry.shape)} there, {list(shape)} by the configuration"
            if entry is not None and entry.dtype not in _LOADABLE:
                yield f"{name} is of type {entry.dtype}; only {', '.join(sorted(_LOADABLE))} can be loaded"
        if self.config.tied_head and THEIR_HEAD in found and not missing:
            yield from self._tied_problem(found)

    def _tied_problem(self, found: Mapping[str, Entry]) -> Iterator[str]:
        """A head beside a tied embedding is fine where both are the same."""
        embed = their_name(EMBED, prefix_of(found))
        if not self._same(embed, THEIR_HEAD):
            yield f"{THEIR_HEAD} differs from {embed}, but tie_word_embeddings is true"

    def _same(self, first: str, second: str) -> bool:
        tensors = []
        for name in (first, second):
            shard = self._places[name]
            with self.store.open_read(shard) as stream:
                file = TensorFile(stream, where=self.store.where(shard), size=self.store.size(shard))
                tensors.append(file.read(name))
        return torch.equal(*tensors)

    @cached_property
    def _places(self) -> dict[str, str]:
        return {entry.name: shard for shard, table in self._tables.items() for entry in table}

    @cached_property
    def _tables(self) -> dict[str, tuple[Entry, ...]]:
        tables = {}
        for shard in self.shards:
            if shard not in self.present:
                raise NotFoundError(
                    f"{self.store.where(shard)}: listed in {INDEX}, but not there", stage=STAGE
                )
            with self.store.open_read(shard) as stream:
                file = TensorFile(stream, where=self.store.where(shard), size=self.store.size(shard))
            tables[shard] = tuple(file.entries.values())
        return tables


def open_folder(uri: str) -> HfFolder:
    """The Hugging Face model at `uri`: a path or any URL that a store has.

    Raises:
        NotFoundError: no config.json there, or no weights.
        ConfigError: weights in another format, or a model that our decoder can't be; names the field.
    """
    store = open_store(uri)
    present = frozenset(file.path for file in store.list() if "/" not in file.path)
    if CONFIG_FILE not in present:
        raise NotFoundError(
            f"{store.uri} holds no {CONFIG_FILE}",
            hint="name a folder with config.json and *.safetensors, or a checkpoint of a run",
            stage=STAGE,
        )
    document = read_document(store, CONFIG_FILE)
    try:
        config = from_hf(document)
    except LlmctlError as error:
        raise ConfigError(f"{store.uri}: {error.message}", hint=error.hint, stage=STAGE) from None
    return HfFolder(
        store=store, document=document, config=config, shards=_shards(store, present), present=present
    )


def _shards(store: Store, present: frozenset[str]) -> tuple[str, ...]:
    if INDEX in present:
        weight_map = read_document(store, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise IntegrityError(f"{store.where(INDEX)}: no weight_map in it", stage=STAGE)
        return tuple(sorted(set(weight_map.values())))
    files = sorted(name for name in present if name.endswith(".safetensors"))
    if SINGLE in files or len(files) == 1:
        return (SINGLE if SINGLE in files else files[0],)
    if files:
        raise IntegrityError(f"{store.uri}: {len(files)} safetensors files, but no {INDEX}", stage=STAGE)
    others = sorted(name for name in present if _OTHER_FORMATS.fullmatch(name))
    if others:
        raise ConfigError(
            f"{store.uri}: the weights are in {others[0]}, only safetensors can be loaded",
            hint="load it with transformers and save it again: model.save_pretrained(folder)",
            stage=STAGE,
        )
    raise NotFoundError(f"{store.uri} holds no {SINGLE}", stage=STAGE)


def read_document(store: Store, name: str) -> dict[str, Any]:
    """A JSON object from a small file.

    Raises:
        IntegrityError: it is none.
    """
    try:
        document = json.loads(store.read_bytes(name))
    except ValueError as error:
        raise IntegrityError(f"{store.where(name)}: not JSON: {error}", stage=STAGE) from None
    if not isinstance(document, dict):
        raise IntegrityError(f"{store.where(name)}: not a JSON object", stage=STAGE)
    return document


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the whole model, by our names."""
    width, q, kv, ffn = config.dim, config.q_dim, config.kv_dim, config.ffn_dim
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (width,),
        "attention.q.weight": (q, width),
        "attention.k.weight": (kv, width),
        "attention.v.weight": (kv, width),
        "attention.out.weight": (width, q),
        "ffn_norm.weight": (width,),
        "ffn.gate.weight": (ffn, width),
        "ffn.up.weight": (ffn, width),
        "ffn.down.weight": (width, ffn),
    }
    if config.qkv_bias:
        layer.update({f"attention.{name}.bias": (size,) for name, size in (("q", q), ("k", kv), ("v", kv))})
    if config.out_bias:
        layer["attention.out.bias"] = (width,)
    if config.qk_norm:
        layer.update({f"attention.{name}_norm.weight": (config.head_dim,) for name in "qk"})
    found: dict[str, tuple[int, ...]] = {EMBED: (config.vocab_size, width)}
    for index in range(config.layers):
        found.update({f"layers.{index}.{name}": shape for name, shape in layer.items()})
    found["norm.weight"] = (width,)
    if not config.tied_head:
        found[HEAD] = (config.vocab_size, width)
    return found


def shortened(names: Iterable[str]) -> str:
    """All `names`, those that differ only in the layer's number as one: `layers.{0-3,7}.…`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = _NUMBER.search(name)
        groups.setdefault(_NUMBER.sub("*", name, count=1), []).append(int(number[0]) if number else -1)
    return ", ".join(
        key if numbers == [-1] else key.replace("*", _ranges(numbers), 1) for key, numbers in groups.items()
    )


def _ranges(numbers: list[int]) -> str:
    """`{0-3,7}` for 0, 1, 2, 3, 7; a single number stays one."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(runs) == 1 and runs[0][0] == runs[0][1]:
        return str(runs[0][0])
    told = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return "{" + told + "}"
