"""One replica's life: its ranks started on their hosts, watched while it serves, ended, and started again.

It is taken for dead when a rank ends, when its connection or one of its hosts is lost, or when it says
nothing for too long although it has work. A real request is the probe where it has none: an open port proves
nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from llmctl.errors import DeadlineError, HostUnreachableError, JobFailedError, LlmctlError
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.infer import ADD, Order, ReplicaReady, SamplingSpec
from llmctl.wire.serving import InferSpec, ReplicaPlan
from llmctl.worker.infer.client import ReplicaClient
from llmctl.worker.infer.deadline import bounded, within
from llmctl.worker.infer.orders import AskPort, End, Ended, Exited, Port, Ready, Start, shares
from llmctl.worker.infer.router import Router, Station, capacity

T = TypeVar("T")

PORT_S = 30.0
END_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
SERVED_WELL_S = 60.0
"""A replica that has served for so long begins with a clean record when it dies."""
PROBE = Order(op=ADD, id="probe", tokens=(0,), sampling=SamplingSpec(max_tokens=1))


@dataclass(frozen=True)
class HostGone:
    """The connection to a host's program has ended: nothing can be started there any more."""

    host: str


class Hosts(Protocol):
    """The front's connections to the hosts' programs."""

    def tell(self, node: int, order: object) -> None:
        """Send an order; to a host that is gone it goes nowhere."""

    def address(self, node: int) -> str: ...

    def is_gone(self, node: int) -> bool: ...


class Supervisor:
    """Keeps one replica serving.

    Args:
        note: tells people something, one line.
    """

    def __init__(
        self,
        plan: ReplicaPlan,
        spec: InferSpec,
        token: str,
        hosts: Hosts,
        router: Router,
        note: Callable[[str], None],
    ) -> None:
        self._plan, self._spec, self._token = plan, spec, token
        self._hosts, self._router, self._note = hosts, router, note
        self.inbox: asyncio.Queue[object] = asyncio.Queue()
        self.generation = 0
        self.restarts = 0
        self.serving = False
        self.ready: ReplicaReady | None = None

    @property
    def index(self) -> int:
        return self._plan.index

    def uses(self, node: int) -> bool:
        """Whether a rank of it is on that node."""
        return node in self._plan.nodes

    @property
    def name(self) -> str:
        return f"replica {self._plan.index}"

    def hear(self, message: object) -> None:
        """A host's report; what is about an earlier generation is passed over."""
        if getattr(message, "generation", self.generation) == self.generation:
            self.inbox.put_nowait(message)

    async def keep(self) -> None:
        """Until it is cancelled.

        Raises:
            JobFailedError: it can't be kept alive; says why.
        """
        failures = 0
        while True:
            self.generation += 1
            self.inbox = asyncio.Queue()
            began = time.monotonic()
            try:
                await self._live()
            except LlmctlError as error:
                why, hopeless = error, isinstance(error, JobFailedError)
            served = self.ready is not None and time.monotonic() - began > SERVED_WELL_S
            failures = 1 if served else failures + 1
            gone = next((node for node in self._plan.nodes if self._hosts.is_gone(node)), None)
            if hopeless or gone is not None or failures > self._spec.max_restarts:
                raise JobFailedError(f"{self.name}: {why.message}", hint=why.hint, stage="infer") from None
            self.restarts += 1
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
            self._note(f"{self.name}: {why.message}; it is started again")
            await asyncio.sleep(pause)

    async def _live(self) -> None:
        """One generation, from its start to its end; always ends by an LlmctlError."""
        client: ReplicaClient | None = None
        station: Station | None = None
        try:
            self.ready = await self._start()
            address = self._hosts.address(self._plan.ranks[0].node)
            client = await ReplicaClient.connect(address, self.ready.port, self._token)
            now = asyncio.get_running_loop().time()
            station = Station(self._plan.index, client, capacity(self.ready.max_batch), now)
            self._tell_ready(self.ready)
            self.serving = True
            self._router.join(station)
            await self._serve(client, station)
        except LlmctlError as error:
            self._leave(station, error.message)
            raise
        finally:
            self.serving = False
            self._leave(station, "the run has ended")
            if client is not None:
                await client.close()
            await self._end()

    def _leave(self, station: Station | None, why: str) -> None:
        if station is not None:
            self._router.leave(station, f"{self.name}: {why}")

    def _tell_ready(self, ready: ReplicaReady) -> None:
        checked = ""
        if ready.check is not None:
            checked = f" · checked: logits within {ready.check.difference:.1e} of one process"
        loaded = f"{ready.dtype}, loaded in {ready.load_s:.1f} s"
        self._note(f"{self.name} is ready on {ready.host}: {loaded}{checked}")

    async def _start(self) -> ReplicaReady:
        first = self._plan.ranks[0].node
        self._hosts.tell(first, AskPort(replica=self._plan.index, generation=self.generation))
        port = await within(self._expect(Port), PORT_S, f"{self.name}: finding a port")
        for position, (node, mine) in enumerate(shares(self._plan, self._spec.engine)):
            order = Start(
                replica=self._plan.index,
                generation=self.generation,
                ranks=mine,
                master_addr=self._hosts.address(first),
                master_port=port.port,
                node=position,
                nodes=len(self._plan.nodes),
            )
            self._hosts.tell(node, order)
        told = await within(self._expect(Ready), self._spec.start_s, f"{self.name}: loading the model")
        return told.ready

    async def _expect(self, kind: type[T]) -> T:
        """The next report of that kind; raises for one that is the replica's end."""
        while True:
            message = await self.inbox.get()
            if isinstance(message, kind):
                return message
            self._refuse_end(message)

    def _refuse_end(self, message: object) -> None:
        if isinstance(message, HostGone):
            raise HostUnreachableError(f"{message.host} is gone", stage="infer")
        if isinstance(message, Exited):
            how = message.why or f"rank {message.rank} ended with {message.code}"
            if message.code == ExitCode.NO_RETRY:
                raise JobFailedError(how, hint="llmctl logs says more", stage="infer")
            raise HostUnreachableError(how, stage="infer")

    async def _serve(self, client: ReplicaClient, station: Station) -> None:
        """Until it is lost; raises why."""
        jobs = [
            asyncio.ensure_future(self._listen(client, station)),
            asyncio.ensure_future(self._watch_ranks()),
            asyncio.ensure_future(self._watch_silence(client, station)),
        ]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _listen(self, client: ReplicaClient, station: Station) -> None:
        async for answer in client.answers():
            self._router.hear(station, answer)
        raise HostUnreachableError("its connection ended", stage="infer")

    async def _watch_ranks(self) -> None:
        while True:
            self._refuse_end(await self.inbox.get())

    async def _watch_silence(self, client: ReplicaClient, station: Station) -> None:
        loop, limit = asyncio.get_running_loop(), self._spec.hang_s
        probed_at: float | None = None
        while True:
            await asyncio.sleep(min(1.0, limit / 8))
            now = loop.time()
            if probed_at is not None and station.heard_at > probed_at:
                probed_at = None
            busy = bool(station.jobs) or probed_at is not None
            silent = now - max(station.heard_at, probed_at or 0.0)
            if busy and silent > limit:
                raise DeadlineError(f"it hangs: no word for {silent:.0f} s", stage="infer")
            if not busy and now - station.heard_at > limit / 2:
                client.send(PROBE)
                probed_at = now

    async def _end(self) -> None:
        """Every rank of this generation is gone afterwards, on every host that still listens."""
        nodes = [node for node in self._plan.nodes if not self._hosts.is_gone(node)]
        for node in nodes:
            self._hosts.tell(node, End(replica=self._plan.index, generation=self.generation))
        waiting = len(nodes)
        deadline = time.monotonic() + END_S
        while waiting and time.monotonic() < deadline:
            try:
                message = await bounded(self.inbox.get(), max(0.01, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                return
            waiting -= isinstance(message, (Ended, HostGone))
