"""Contact with every host of a run, each in a thread of its own: what it last said, and how long its ranks
may go on without us.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.supervise.lease import HostClock, end_here, end_there
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError, NotFoundError, ReplacedError
from llmctl.wire.contact import ContactReply, ContactRequest, Probe
from llmctl.wire.records import NodeStatus
from llmctl.wire.supervision import EVERY_S, Supervision

_DEADLINE_S = 8.0
_CLOCKS = 8
"""Answers that tell how a host's monotonic clock stands to ours: the quickest does. Few, as clocks drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One host, as last heard of. Times are on our monotonic clock.

    Attributes:
        ok_at: when it last answered (at the start: when watching began); asked_at: when that was asked.
        clocks: our monotonic clock less the host's, at each of its last answers since it was booted; each
            too large by the time that the answer took.
        error: why it did not answer the last time; None: it did.
        missing: it answered that it knows no such run.
        ranks_until: its ranks have certainly ended after that, if nothing renews them; None: no lease.
        replaced: it obeys another supervisor.
    """

    host: str
    ok_at: float
    asked_at: float = 0.0
    clocks: tuple[float, ...] = ()
    answered: bool = False
    error: LlmctlError | None = None
    reply: ContactReply | None = None
    missing: bool = False
    replaced: bool = False
    ranks_until: float | None = None

    @property
    def status(self) -> NodeStatus | None:
        return self.reply.status if self.reply and not self.missing else None

    @property
    def reachable(self) -> bool:
        return self.answered and self.error is None

    def here(self, at: float) -> float:
        """A time of the host's own Unix clock, such as it names in its last answer, on our monotonic clock:
        counted back from when that answer was made, so that a clock which jumped before does not matter."""
        if self.reply is None:
            return self.ok_at
        return self.reply.mono + min(self.clocks) - (self.reply.now - at)

    def silent_for(self, now: float) -> float:
        """Seconds without an answer; 0 where the last question was answered."""
        return 0.0 if self.error is None and self.answered else now - self.ok_at


@dataclass(slots=True, kw_only=True)
class _Line:
    host: Host
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: Sighting
    clock: HostClock | None = None
    lease_s: float | None = None
    probes: tuple[Probe, ...] = ()


class Contacts:
    """Beats with all hosts while the context lasts. `said` gives what to tell them."""

    def __init__(
        self,
        connections: Connections,
        hosts: Sequence[Host],
        archive: AgentArchive,
        run_id: str,
        said: Callable[[], Supervision],
    ) -> None:
        now = time.monotonic()
        self._connections = connections
        self._archive = archive
        self._run_id = run_id
        self._said = said
        self._over = threading.Event()
        self._lines = {h.name: _Line(host=h, seen=Sighting(host=h.name, ok_at=now)) for h in hosts}
        self._threads = [
            threading.Thread(target=self._keep, args=(line,), daemon=True) for line in self._lines.values()
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()

    def seen(self) -> dict[str, Sighting]:
        """Every host, as last heard of."""
        return {name: line.seen for name, line in self._lines.items()}

    def lease(self, names: Sequence[str], seconds: float | None) -> None:
        """From now on renew the lease of the ranks on these hosts with each beat; None: renew it no more."""
        now = time.monotonic()
        for name in names:
            line = self._lines[name]
            with line.lock:
                line.lease_s = seconds
                if seconds is not None:
                    line.seen = replace(line.seen, ranks_until=end_here(now, seconds))

    def ended(self, name: str) -> None:
        """The ranks there have ended for certain: no lease counts any more."""
        line = self._lines[name]
        with line.lock:
            line.lease_s = None
            line.seen = replace(line.seen, ranks_until=None)

    def ask_about(self, name: str, probes: Sequence[Probe]) -> None:
        """Have this host try to reach others with each beat."""
        self._lines[name].probes = tuple(probes)

    def speak(self) -> dict[str, LlmctlError | None]:
        """One beat with every host now, such as the last word; why it failed, by host."""

        def one(host: Host) -> None:
            self._beat(self._lines[host.name])

        told = self._connections.each([line.host for line in self._lines.values()], one)
        return {name: value if isinstance(value, LlmctlError) else None for name, value in told.items()}

    def _keep(self, line: _Line) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self._beat(line)
            self._over.wait(max(0.2, EVERY_S - (time.monotonic() - began)))

    def _beat(self, line: _Line) -> None:
        with line.lock:
            asked = time.monotonic()
            supervision = self._with_lease(line, asked)
        client_error: LlmctlError | None = None
        reply: ContactReply | None = None
        try:
            client = AgentClient(self._connections.get(line.host.name), line.host, self._archive)
            request = ContactRequest(supervision=supervision, probes=line.probes)
            reply = client.contact(self._run_id, request, deadline_s=_DEADLINE_S)
        except LlmctlError as error:
            client_error = error
        with line.lock:
            self._note(line, reply, client_error, asked)

    def _with_lease(self, line: _Line, asked: float) -> Supervision:
        """What is said, with the lease that it renews."""
        said = self._said()
        if line.lease_s is None:
            return said
        if line.clock is None:  # the lease counts from the attempt's start there
            return said
        until = end_here(asked, line.lease_s)
        line.seen = replace(line.seen, ranks_until=max(until, line.seen.ranks_until or 0.0))
        told = end_there(line.clock, asked, line.lease_s)
        return replace(said, valid_until=told, boot_id=line.clock.boot_id)

    def _note(self, line: _Line, reply: ContactReply | None, error: LlmctlError | None, asked: float) -> None:
        now = time.monotonic()
        seen = replace(line.seen, ok_at=now, asked_at=asked, answered=True, error=None)
        if reply is not None:
            same = line.clock is not None and line.clock.boot_id == reply.boot_id
            clocks = (*(seen.clocks if same else ()), now - reply.mono)[-_CLOCKS:]
            line.clock = HostClock(came=now, mono=reply.mono, boot_id=reply.boot_id)
            line.seen = replace(seen, reply=reply, missing=False, clocks=clocks)
        elif isinstance(error, NotFoundError):
            line.seen = replace(seen, missing=True)
        elif isinstance(error, ReplacedError):
            line.seen = replace(seen, replaced=True)
        else:
            line.seen = replace(line.seen, error=error)


def probes_of(hosts: Mapping[str, Host], addresses: Mapping[str, str], names: Sequence[str]) -> list[Probe]:
    """How the others can look for these hosts: at the address that the job uses, on sshd's port."""
    return [
        Probe(host=name, addr=addresses[name], port=hosts[name].port or 22)
        for name in names
        if name in addresses
    ]
