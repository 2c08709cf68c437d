"""What the front of an inference run and a replica's rank 0 say to one another, as JSON lines over TCP.

The front knows text; a replica knows token ids. One line is one document of `wire/codec.py`: `Order` to
the replica, `Answer` back. The first line of a connection is the token (environment variable TOKEN), nothing
else. An order's answers come in the order of its tokens; the last one has `finish` set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from llmctl.errors import ConfigError

TOKEN = "LLMCTL_INFER_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable with the secret that the front says first."""

GENERATE, SCORE, EMBED = "generate", "score", "embed"
TASKS = (GENERATE, SCORE, EMBED)

ADD, CANCEL, STATS, DRAIN = "add", "cancel", "stats", "drain"
OPS = (ADD, CANCEL, STATS, DRAIN)

STOP, LENGTH, CANCELLED, ERROR = "stop", "length", "cancelled", "error"
FINISHES = (STOP, LENGTH, CANCELLED, ERROR)

MAX_LOGPROBS = 20
"""Alternatives per token at most, as in OpenAI's API."""

MAX_LINE = 16 << 20
"""Bytes of one line at most; a longer one ends the connection."""


@dataclass(frozen=True)
class SamplingSpec:
    """How the next token is chosen.

    Attributes:
        max_tokens: new tokens at most.
        temperature: 0: always the likeliest, whatever the other numbers.
        top_p: only the likeliest tokens that together have this probability.
        top_k: only so many of the likeliest; 0: no such limit.
        seed: the same seed and prompt give the same tokens, whatever else the replica does; None: any.
        repetition_penalty: logits of tokens seen in prompt or answer are divided by it where positive,
            multiplied where negative (as in transformers); 1: off.
        stop_tokens: an answer ends before one of these; the stop token is not part of it.
        logprobs: None: none; n: of the chosen token and of the n likeliest, before temperature and filters.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: Optional[int] = None
    repetition_penalty: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    logprobs: Optional[int] = None

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            ConfigError: names the field.
        """
        _require(self.max_tokens >= 1, "max_tokens", f"must be at least 1, not {self.max_tokens}")
        _require(0 <= self.temperature <= 100, "temperature", f"must be 0 to 100, not {self.temperature}")
        _require(0 < self.top_p <= 1, "top_p", f"must be above 0 and at most 1, not {self.top_p}")
        _require(self.top_k >= 0, "top_k", f"must not be negative, not {self.top_k}")
        penalty = self.repetition_penalty
        _require(0 < penalty <= 100, "repetition_penalty", f"must be above 0 and at most 100, not {penalty}")
        wanted = self.logprobs
        _require(
            wanted is None or 0 <= wanted <= MAX_LOGPROBS,
            "logprobs",
            f"must be 0 to {MAX_LOGPROBS}, not {wanted}",
        )


def _require(holds: bool, field_name: str, message: str) -> None:
    if not holds:
        raise ConfigError(f"{field_name} {message}", stage="request")


@dataclass(frozen=True)
class Order:
    """From the front.

    Attributes:
        op: one of OPS. `cancel` names the `id` to end; `stats` is answered by an Answer with `stats`; after
            `drain` nothing new is taken, and the replica ends when all that it has is answered.
        id: the front's own name for the request, unique on the connection while it is open.
        task: one of TASKS; `score` and `embed` read the tokens and generate none.
    """

    op: str
    id: str = ""
    task: str = GENERATE
    tokens: tuple[int, ...] = ()
    sampling: SamplingSpec = field(default_factory=SamplingSpec)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithm of the probability of one token, and the likeliest instead of it, likeliest first."""

    token: int
    logprob: float
    top_tokens: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class ReplicaStats:
    """A replica at this moment.

    Attributes:
        slots: requests that it can work on at once; `free` of them are.
        waiting: requests that were taken and have no slot yet.
        running: requests that have one.
        prompt_tokens, new_tokens: read and made since the start.
        steps: forward passes since the start.
    """

    slots: int
    free: int
    waiting: int
    running: int
    prompt_tokens: int
    new_tokens: int
    steps: int
    draining: bool = False


@dataclass(frozen=True)
class Answer:
    """From the replica.

    Attributes:
        tokens: new ones since the last answer to this id.
        logprobs: one per token, where they were asked for.
        finish: None: more will come; else one of FINISHES, and this is the last answer.
        error: with `finish` error: why, one line.
        scores: of `score`: log-likelihood of each token but the first, given those before it.
        embedding: of `embed`: the mean of the last hidden states, behind the final norm.
    """

    id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Optional[str] = None
    error: Optional[str] = None
    scores: tuple[float, ...] = ()
    embedding: tuple[float, ...] = ()
    stats: Optional[ReplicaStats] = None


@dataclass(frozen=True)
class ReplicaSpec:
    """What every rank of a replica is told; no secrets.

    Attributes:
        name: for logs.
        model: URI of a Hugging Face folder, a checkpoint, or a folder of checkpoints.
        base: where the base model of a checkpoint of adapters is now, if it has moved.
        tp, pp: ranks that share each matrix, and stages; tp is innermost: rank = stage * tp + place.
        dtype: `bf16` or `fp32`, of weights and cache.
        max_batch: requests that are worked on at once: slots of the cache.
        max_length: positions of each slot: prompt and answer together.
        max_waiting: requests that wait for a slot; one more is answered by an error.
        chunk: prompt tokens per forward pass at most, beside the decoding requests.
        threads: of each rank; None: its share of the host's cores.
        nproc: ranks of this replica on this host, for that share.
        listen, port: where rank 0 listens; port 0: any free one, told in the ready file.
        ready_file: written by rank 0 when it can serve (`ReplicaReady`).
        pg_timeout_s: of every exchange between ranks.
        check: compare with a single-process reference before the ready file is written.
        device: `auto` or `cpu`.
        kernels: `auto`, `native` (compiled on the host) or `torch`.
        node, nodes: of an engine that starts its own ranks, one process per host: which of its hosts this is.
        start_s: how long such an engine may take until it answers.
        devices: the GPUs of this host that such an engine may use; empty: as it likes.
    """

    name: str
    model: str
    ready_file: str
    base: Optional[str] = None
    tp: int = 1
    pp: int = 1
    dtype: str = "bf16"
    max_batch: int = 8
    max_length: int = 2048
    max_waiting: int = 1024
    chunk: int = 256
    threads: Optional[int] = None
    nproc: int = 1
    listen: str = "127.0.0.1"
    port: int = 0
    pg_timeout_s: float = 60.0
    check: bool = True
    device: str = "auto"
    kernels: str = "auto"
    node: int = 0
    nodes: int = 1
    start_s: float = 600.0
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class HandoffCheck:
    """What the comparison with a single-process reference came to.

    Attributes:
        difference: largest absolute difference of logits; `limit` is what is allowed.
        agree: share of positions where both have the same likeliest token.
    """

    difference: float
    limit: float
    agree: float
    prompts: int
    tokens: int


@dataclass(frozen=True)
class ReplicaReady:
    """The ready file of a replica."""

    name: str
    host: str
    port: int
    pid: int
    vocab_size: int
    parameters: int
    max_batch: int
    max_length: int
    dtype: str
    kernels: str
    load_s: float
    check: Optional[HandoffCheck] = None


def why_file(ready_file: str) -> str:
    """Where a rank leaves the reason of its end, one line, for whoever started it."""
    return f"{ready_file}.why"
