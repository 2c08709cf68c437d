"""What the front tells the hosts' programs, and what they tell it: one dataclass per message.

Every message about a replica carries its generation: how often it has been started. News of a generation that
has been given up must not be taken for the present one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Union

from llmctl.errors import IntegrityError
from llmctl.wire import codec
from llmctl.wire.infer import ReplicaReady
from llmctl.wire.serving import VLLM, ReplicaPlan


@dataclass(frozen=True)
class AskPort:
    """To the host of a replica's rank 0: name a free port for the rendezvous."""

    op: ClassVar[str] = "ask-port"
    replica: int
    generation: int


@dataclass(frozen=True)
class Port:
    """Its answer."""

    op: ClassVar[str] = "port"
    replica: int
    generation: int
    port: int


@dataclass(frozen=True)
class RankSlot:
    """One process of a replica on the host that is told, and the slot (GPU) that it may use.

    Attributes:
        rank: its first (or only) rank.
        more: further slots, where the process starts the ranks for them itself.
    """

    rank: int
    slot: int
    more: tuple[int, ...] = ()


@dataclass(frozen=True)
class Start:
    """Start these processes of a replica. `node`: which of the replica's `nodes` hosts this one is."""

    op: ClassVar[str] = "start"
    replica: int
    generation: int
    ranks: tuple[RankSlot, ...]
    master_addr: str
    master_port: int
    node: int = 0
    nodes: int = 1


@dataclass(frozen=True)
class End:
    """End the ranks of a replica, now: SIGKILL to their groups."""

    op: ClassVar[str] = "end"
    replica: int
    generation: int


@dataclass(frozen=True)
class Ready:
    """Rank 0 of a replica takes requests now; `ready` says where."""

    op: ClassVar[str] = "ready"
    replica: int
    generation: int
    ready: ReplicaReady


@dataclass(frozen=True)
class Exited:
    """A rank has ended; `code` as a shell has it, 128+n for signal n; `why`: its own words, if it had any."""

    op: ClassVar[str] = "exited"
    replica: int
    generation: int
    rank: int
    code: int
    why: str = ""


@dataclass(frozen=True)
class Ended:
    """No process of the replica is left on the host."""

    op: ClassVar[str] = "ended"
    replica: int
    generation: int


@dataclass(frozen=True)
class Stopping:
    """This host was told to stop; the front should come to an end, requests within `drain_s` seconds."""

    op: ClassVar[str] = "stopping"
    drain_s: float


@dataclass(frozen=True)
class Bye:
    """The run is over: end what is left and leave with `code`."""

    op: ClassVar[str] = "bye"
    code: int


def shares(plan: ReplicaPlan, engine: str) -> list[tuple[int, tuple[RankSlot, ...]]]:
    """(node, what is started there) of each node of a replica: every rank by itself, or one process per node
    for an engine that starts its ranks itself."""
    found: list[tuple[int, tuple[RankSlot, ...]]] = []
    for node in plan.nodes:
        mine = [(rank, place.slot) for rank, place in enumerate(plan.ranks) if place.node == node]
        if engine == VLLM:
            first, *more = mine
            found.append((node, (RankSlot(*first, more=tuple(slot for _, slot in more)),)))
        else:
            found.append((node, tuple(RankSlot(rank, slot) for rank, slot in mine)))
    return found


Order = Union[AskPort, Start, End, Bye]
Report = Union[Port, Ready, Exited, Ended, Stopping]

_KINDS: dict[str, type[Any]] = {
    kind.op: kind for kind in (AskPort, Port, Start, End, Ready, Exited, Ended, Stopping, Bye)
}


def message(value: Order | Report) -> dict[str, Any]:
    """As it goes over the wire."""
    return {"op": value.op, **codec.encode(value)}


def parse(document: dict[str, Any]) -> Any:
    """The dataclass in a message. Raises IntegrityError."""
    kind = _KINDS.get(str(document.get("op")))
    if kind is None:
        raise IntegrityError(f"unknown message {document.get('op')!r}")
    return codec.decode(kind, document)
