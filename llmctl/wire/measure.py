"""What controller and hosts say to each other while the network between hosts is measured.

The agent's `measure` says `Listening` on its first line; each line of stdin is then a `PathsRequest`, each of
stdout its `PathsReply`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Listening:
    """First line of `measure`: peers connect to `port`, on any address, and show `token`.

    Attributes:
        first, last: where the kernel takes ports from for sockets that ask for none, as collectives do.
    """

    port: int
    token: str
    first: int = 32768
    last: int = 60999


@dataclass(frozen=True)
class Target:
    """One way to a peer.

    Attributes:
        addr: of the peer. source: our own address to connect from; empty: the kernel's choice by route.
        spare: tried only where no target before it was reached.
    """

    addr: str
    source: str = ""
    spare: bool = False


@dataclass(frozen=True)
class PathsRequest:
    """Measure every way to one peer, one after the other.

    Attributes:
        seconds: of sending, for each direction; 0: only latency.
        connect_s: deadline of a connection.
        ssh_port: knocked at where a connection fails: is the machine there at all? 0: don't.
    """

    port: int
    token: str
    targets: tuple[Target, ...]
    seconds: float
    connect_s: float = 3.0
    ssh_port: int = 0


@dataclass(frozen=True)
class WayReply:
    """One target, measured.

    Attributes:
        source: our address on that connection.
        rtt_s: the shortest round trip of one byte.
        there, back: bytes per second from us to the peer and from it to us, one TCP stream, as received.
        error: empty, or `refused`, `silent` (no answer), `unreachable`, `stranger` (another program or
            machine answers there), `broken` (it ended in the middle).
        ssh_open: where there is an error: whether the peer's SSH port takes connections on that address.
    """

    addr: str
    source: str = ""
    rtt_s: Optional[float] = None
    there: Optional[float] = None
    back: Optional[float] = None
    error: str = ""
    ssh_open: Optional[bool] = None


@dataclass(frozen=True)
class PathsReply:
    """The targets that were tried, in order."""

    ways: tuple[WayReply, ...] = ()
