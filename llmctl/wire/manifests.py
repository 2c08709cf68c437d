"""Manifests of data and checkpoints: the list of files with sizes and hashes that is always written last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

SHARD_MANIFEST = "manifest.json"
"""Name of the ShardManifest below a data URI: a folder without it holds no data set."""

COMMIT_MARKER = "COMMIT.json"
"""Name of the CheckpointManifest below a checkpoint: a folder without it is no checkpoint."""


TOKENS = "tokens"
TAR = "tar"
"""Values of a data set manifest's `format`: ShardManifest and TarManifest."""

CRC_BLOCK = 1 << 20
"""Bytes that one CRC-32 of a FileEntry covers."""


@dataclass(frozen=True)
class FileEntry:
    """One file, path relative to its manifest, POSIX separators, size in bytes.

    Attributes:
        crc32: of each CRC_BLOCK bytes, 8 hex digits each, joined: tells where a damaged file differs.
    """

    path: str
    size: int
    sha256: str
    crc32: str = ""


@dataclass(frozen=True)
class ShardEntry:
    """One token shard: `<name>.bin` (little-endian tokens), `<name>.idx` (uint64 start of each document)."""

    name: str
    tokens: int
    documents: int
    bin: FileEntry
    idx: FileEntry


@dataclass(frozen=True)
class ShardManifest:
    """A tokenised corpus. Same input and settings give the same bytes, so the same manifest.

    Attributes:
        dtype: `uint16` or `uint32`.
        tokenizer: `bytes`, or the file name of a Hugging Face `tokenizer.json` stored beside the manifest.
        eos: id appended after each document.
        settings: what shaped the bytes (field, shard size ...), for people and for resuming.
        format: TOKENS; absent in manifests of an older llmctl.
    """

    dtype: str
    vocab_size: int
    eos: int
    tokenizer: str
    tokens: int
    documents: int
    shards: tuple[ShardEntry, ...]
    tokenizer_file: Optional[FileEntry] = None
    settings: dict[str, Any] = field(default_factory=dict)
    format: str = TOKENS


@dataclass(frozen=True)
class TarShard:
    """One tar of a tar data set; the files of a sample lie in it side by side."""

    file: FileEntry
    samples: int
    members: int


@dataclass(frozen=True)
class TarManifest:
    """A data set of tar shards in the manner of WebDataset: same input and settings give the same bytes.

    Attributes:
        samples: files that have a path up to the first dot of their name in common are one sample.
        members: files in all tars; `content_bytes`: their bytes, without what tar adds.
        extensions: how many samples have a file of each extension (what follows the first dot).
    """

    samples: int
    members: int
    content_bytes: int
    shards: tuple[TarShard, ...]
    extensions: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    format: str = TAR


@dataclass(frozen=True)
class BaseWeights:
    """The model that a checkpoint of adapters belongs to: where it was, and which bytes it had."""

    uri: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class CheckpointManifest:
    """COMMIT.json of one checkpoint: its presence, with every listed file, makes it one.

    Attributes:
        step: optimizer steps done; with the recipe's seed and global batch also the data position.
        attempt: which attempt wrote it.
        world_size: ranks that wrote it; loading does not depend on it.
        model: the worker's ModelConfig as plain values, enough to build the model without the job.
        base: the frozen weights, where the files hold only the adapters of `recipe["lora"]`.
    """

    run_id: str
    attempt: int
    step: int
    world_size: int
    created_at: float
    files: tuple[FileEntry, ...]
    model: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    base: Optional[BaseWeights] = None


def checkpoint_name(step: int) -> str:
    """The folder of one checkpoint: `step-00000100`; sorts by step."""
    return f"step-{step:08d}"
