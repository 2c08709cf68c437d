"""What controller and hosts say to each other in `hosts check --deep`: one line of JSON each way.

The program (`llmctl.worker.deepcheck`) says `DeepHello`, is told a `DeepSetup`, and then answers every
`DeepRequest` with a `DeepReply`. It ends with its stdin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

MATMUL, SERVE, REDUCE, READ, WRITE, TRIAL = "matmul", "serve", "reduce", "read", "write", "trial"


@dataclass(frozen=True)
class DeepHello:
    """First line, before anything heavy is imported."""

    pid: int


@dataclass(frozen=True)
class DeepSetup:
    """First line of stdin: the environment that ranks would have, secrets included; never written."""

    env: dict[str, str] = field(default_factory=dict)
    torch: bool = True


@dataclass(frozen=True)
class DeepRequest:
    """One thing to do.

    Attributes:
        kind: `matmul`, on every device; `serve`, make a rendezvous store for a pair; `reduce`, all-reduce
            with one peer; `read` from a corpus; `write` to a store; `trial`, a checkpoint of so many bytes.
        seconds: about how long it may take.
        rank, addr, port, interface, backend: of `reduce`; rank 0 has served the store.
        uri: of `read`, `write` and `trial`; a path is the host's own.
        bytes: to move at most; of `trial`: the checkpoint's size.
    """

    kind: str
    seconds: float = 2.0
    rank: int = 0
    addr: str = ""
    port: int = 0
    interface: str = ""
    backend: str = "gloo"
    uri: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class DeviceSpeed:
    """One device in `matmul`.

    Attributes:
        name: `cpu`, or `gpu 3`. model: what its driver or kernel calls it.
        flops: per second, in fp32 on CPUs and bf16 on GPUs.
        same: every product of the same matrices was the same, bit for bit.
    """

    name: str
    model: str
    flops: float
    same: bool = True


@dataclass(frozen=True)
class DeepReply:
    """How one request went.

    Attributes:
        error, hint: empty: it went well.
        port: of `serve`.
        rate: of `reduce`, bytes per second on the wire each way.
        up, down: of stores, bytes per second. free: bytes left there.
        bytes, seconds: of `trial`: written (fewer than asked for: time was up), and how long that took.
    """

    error: str = ""
    hint: str = ""
    devices: tuple[DeviceSpeed, ...] = ()
    port: int = 0
    rate: Optional[float] = None
    up: Optional[float] = None
    down: Optional[float] = None
    free: Optional[int] = None
    bytes: int = 0
    seconds: float = 0.0
