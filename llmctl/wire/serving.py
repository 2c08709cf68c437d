"""What the hosts of an inference run are told: which replicas there are, where their ranks go, and what for.

The messages between the front and a replica are in wire/infer.py; this is the part that the planner makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from llmctl.wire.infer import GENERATE

BUILTIN, VLLM = "builtin", "vllm"
"""What computes in a replica."""

BATCH_PLAN = "batch.json"
"""In a batch's output folder: what made it (BatchPlan), written first."""
BATCH_MANIFEST = "manifest.json"
"""In a batch's output folder: every part with its hash (BatchManifest), written last: the batch is whole."""


@dataclass(frozen=True)
class RankPlace:
    """Where one rank of a replica runs: the node's rank in the run, and which of its slots (or GPUs)."""

    node: int
    slot: int


@dataclass(frozen=True)
class ReplicaPlan:
    """One copy of the model: `ranks[r]` is the place of its rank r; rank 0 answers requests."""

    index: int
    ranks: tuple[RankPlace, ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes that hold some of it, each once, in rank order."""
        return tuple(dict.fromkeys(place.node for place in self.ranks))


@dataclass(frozen=True)
class BatchSpec:
    """One file in, one folder out.

    Attributes:
        input: URI of a JSONL file; output: URI of a folder.
        part_lines: input lines per part; a part is written whole, so this is what a killed batch repeats.
        sampling: defaults for every line, by the names of wire/infer.py; a line's own keys win.
    """

    input: str
    output: str
    task: str = GENERATE
    part_lines: int = 256
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServeSpec:
    """An OpenAI-compatible endpoint on node 0.

    Attributes:
        address: what it listens on; loopback unless it is exposed.
        port: 0: any free one; a metric line (`endpoint`) says which.
        needs_key: requests must carry the key that came as a secret (wire/environment.py).
        queue: requests that may wait for a replica; more are refused with 429.
    """

    address: str = "127.0.0.1"
    port: int = 0
    needs_key: bool = False
    queue: int = 256


@dataclass(frozen=True)
class InferSpec:
    """An inference run; the same value on all its hosts. Exactly one of `batch` and `serve` is set.

    Attributes:
        model: URI of a Hugging Face folder or a checkpoint of ours, readable on every host.
        name: what clients call it.
        engine: BUILTIN or VLLM.
        max_batch: requests that one replica works on at once.
        max_tokens: prompt and answer together, at most, per request.
        hang_s: a replica that says nothing for so long, with work before it, is taken for dead.
        max_restarts: of one replica in a row; one that has served for a while starts counting anew.
        check: compare its logits with a single process's before a layout serves.
        threads: CPU threads of each rank, by node; 0: the rank's own rule.
    """

    model: str
    name: str
    replicas: tuple[ReplicaPlan, ...]
    tp: int = 1
    pp: int = 1
    dtype: str = "bf16"
    engine: str = BUILTIN
    max_batch: int = 16
    max_tokens: int = 2048
    hang_s: float = 60.0
    start_s: float = 600.0
    max_restarts: int = 5
    check: bool = True
    threads: tuple[int, ...] = ()
    batch: Optional[BatchSpec] = None
    serve: Optional[ServeSpec] = None

    @property
    def world(self) -> int:
        """Ranks of one replica."""
        return self.tp * self.pp


@dataclass(frozen=True)
class BatchPlan:
    """BATCH_PLAN: parts of another input, model or setting must not be taken for this batch's."""

    input: str
    input_size: int
    input_version: str
    model: str
    task: str
    part_lines: int
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchPart:
    """One part: `lines` from input line `first` on, and the file's fingerprint."""

    path: str
    first: int
    lines: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BatchManifest:
    """BATCH_MANIFEST. `errors`: lines that became error records; tokens: read, and made."""

    plan: BatchPlan
    parts: tuple[BatchPart, ...]
    lines: int
    errors: int
    prompt_tokens: int
    completion_tokens: int


def part_name(first: int) -> str:
    """The file that holds the answers of the input lines from `first` on; sorted names are input order."""
    return f"part-{first:012d}.jsonl"
