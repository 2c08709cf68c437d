"""Lines of metrics.jsonl: written by rank 0 (or by any script, to $LLMCTL_METRICS), read by everyone.

A script that is not ours takes part by appending such lines; unknown kinds and keys are passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

STEP = "step"
CHECKPOINT = "checkpoint"
CHECKPOINT_FAILED = "checkpoint-failed"
NOTE = "note"
ENDPOINT = "endpoint"


@dataclass(frozen=True)
class StepLine:
    """`kind: step`, one per optimizer step.

    Attributes:
        t: Unix time on the host.
        step: steps done, counted from 1; `total`: steps of the whole run.
        loss: mean over the tokens of the global batch, in nats per token.
        tokens_per_s: of the whole job, over this step.
        data_wait: share of the step (0..1) in which rank 0 waited for its next batch.
        memory_bytes: peak device memory of rank 0, or its peak resident memory on CPU.
    """

    t: float
    step: int
    total: Optional[int] = None
    loss: Optional[float] = None
    lr: Optional[float] = None
    grad_norm: Optional[float] = None
    tokens: Optional[int] = None
    tokens_per_s: Optional[float] = None
    data_wait: Optional[float] = None
    memory_bytes: Optional[int] = None
    kind: str = STEP


@dataclass(frozen=True)
class CheckpointLine:
    """`kind: checkpoint`, after the commit marker is in place.

    Attributes:
        stalled_s: how long training stood still for it.
        waited_s: the part of it in which the checkpoint before was still being written.
        took_s: from the first copied byte to the commit, most of it beside training.
    """

    t: float
    step: int
    bytes: int
    stalled_s: float
    uri: str = ""
    waited_s: Optional[float] = None
    took_s: Optional[float] = None
    kind: str = CHECKPOINT


@dataclass(frozen=True)
class CheckpointFailedLine:
    """`kind: checkpoint-failed`: one that is not there, after all tries.

    Attributes:
        error: why, in one line.
        in_a_row: how many have failed since the last one that was committed.
    """

    t: float
    step: int
    error: str
    in_a_row: int = 1
    kind: str = CHECKPOINT_FAILED


@dataclass(frozen=True)
class EndpointLine:
    """`kind: endpoint`: `infer serve` answers at this address, as node 0 knows it."""

    t: float
    address: str
    port: int
    model: str
    kind: str = ENDPOINT


@dataclass(frozen=True)
class NoteLine:
    """`kind: note`: something a person should see once (`tensorboard is not installed here`)."""

    t: float
    text: str
    kind: str = NOTE
