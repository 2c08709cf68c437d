"""Is this still the machine that was trusted? Host key, machine-id and boot-id against what was pinned.

The host key is checked by the transport before anybody logs in; here the machine behind it is. A disk that
was cloned keeps its host key, so the key alone does not say which machine answers.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from llmctl.controller.config.types import Host
from llmctl.controller.ledger.hostbook import HostBook, Pin
from llmctl.controller.probe.machine import Machine
from llmctl.controller.transport.pool import Connections
from llmctl.errors import HostIdentityError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """`pin`: what to remember now. `notes`: what a person should hear, such as a reboot."""

    pin: Pin
    notes: tuple[str, ...] = ()


def recognise(name: str, known: Pin | None, seen: Pin) -> Recognised:
    """Compare what answers with what was pinned. Pure.

    Raises:
        HostIdentityError: another machine-id, with both, and what to do.
    """
    if known is None:
        return Recognised(pin=seen)
    if known.machine_id and seen.machine_id and known.machine_id != seen.machine_id:
        raise HostIdentityError(
            f"another machine answers at {seen.address}: its machine-id is {seen.machine_id},"
            f" known is {known.machine_id}",
            hint=f"if it was replaced or reinstalled: llmctl hosts trust {name} --replace;"
            " if not: do not use it",
            host=name,
            stage="identity",
        )
    kept = replace(
        seen,
        machine_id=seen.machine_id or known.machine_id,
        boot_id=seen.boot_id or known.boot_id,
        first_seen=known.first_seen or seen.seen,
    )
    return Recognised(pin=kept, notes=tuple(_changes(known, seen)))


def _changes(known: Pin, seen: Pin) -> list[str]:
    notes = []
    if known.key == seen.key and known.address != seen.address:
        notes.append(f"has moved to {seen.address} (was {known.address}; same host key)")
    if known.key != seen.key:
        notes.append("has a new host key, which known_hosts has; the machine-id is the same")
    if known.boot_id and seen.boot_id and known.boot_id != seen.boot_id:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(known.seen))
        notes.append(f"was rebooted since {since}, when it was last seen")
    return notes


class Recogniser:
    """Checks hosts as they are probed, and remembers them. Thread-safe.

    Attributes:
        notes: what changed about each host, by name.
        keys: fingerprint of the host key that each one showed.
    """

    def __init__(self, book: HostBook) -> None:
        self._book = book
        self._known = book.pins()
        self._lock = threading.Lock()
        self.notes: dict[str, tuple[str, ...]] = {}
        self.keys: dict[str, str] = {}

    def check(self, host: Host, machine: Machine, connections: Connections) -> None:
        """Raises HostIdentityError where another machine answers; nothing is remembered of that one."""
        identity = connections.identity(host.name)
        if identity is None:
            return  # this machine itself
        key, fingerprint, address = identity
        seen = pin_of(key, address, machine_id=machine.machine_id, boot_id=machine.boot_id)
        known = self._known.get(host.name)
        found = recognise(host.name, known, seen)
        with self._lock:
            self.keys[host.name] = fingerprint
            if found.notes:
                self.notes[host.name] = found.notes
            if known is None or worth_writing(known, found.pin):
                self._book.set_pin(host.name, found.pin)

    def lines(self) -> list[str]:
        """`b was rebooted since …`, one per change."""
        return [f"{name} {note}" for name, notes in sorted(self.notes.items()) for note in notes]


SEEN_EVERY_S = 600.0


def worth_writing(known: Pin, found: Pin) -> bool:
    """Not for the time alone, unless that has become old: 100 hosts are not 100 writes each time."""
    same = replace(found, seen=known.seen, first_seen=known.first_seen) == known
    return not same or found.seen - known.seen > SEEN_EVERY_S


def pin_of(key: str, address: str, *, machine_id: str | None, boot_id: str | None) -> Pin:
    """A Pin of now."""
    now = time.time()
    return Pin(
        key=key,
        address=address,
        machine_id=machine_id or "",
        boot_id=boot_id or "",
        first_seen=now,
        seen=now,
    )
