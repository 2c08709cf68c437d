"""The front of an inference run, on node 0: hosts report to it, replicas serve it, requests come through it.

It holds a star of connections, one per host, and one supervisor per replica. The run ends with its work
(`batch`), with a stop, or when no replica can be kept alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from llmctl.errors import DeadlineError, IntegrityError, JobFailedError, LlmctlError
from llmctl.wire.metrics import NoteLine
from llmctl.wire.serving import InferSpec
from llmctl.wire.specs import NodeSpec
from llmctl.worker.infer.batch import run_batch
from llmctl.worker.infer.client import watch_peer
from llmctl.worker.infer.deadline import bounded
from llmctl.worker.infer.duty import Duty, Stop
from llmctl.worker.infer.link import LINE_LIMIT, Link, accept
from llmctl.worker.infer.modelfiles import read_model
from llmctl.worker.infer.orders import Bye, Stopping, message, parse
from llmctl.worker.infer.progress import Progress
from llmctl.worker.infer.router import Router
from llmctl.worker.infer.supervisor import HostGone, Supervisor

CLOSE_S = 2.0
HOSTS_S = 120.0
"""How long the hosts' programs may take to report; their agents were started at the same time."""


class Front:
    """See the module."""

    def __init__(self, spec: NodeSpec, infer: InferSpec, token: str) -> None:
        self._spec, self._infer, self._token = spec, infer, token
        self._links: dict[int, Link] = {}
        self._gone: set[int] = set()
        self._visits: set[asyncio.Task[Any]] = set()
        self._news = asyncio.Event()
        self._stop = Stop()
        self._server: asyncio.Server | None = None
        self._progress = Progress()
        limit = infer.serve.queue if infer.serve else None
        self._router = Router(limit=limit, clock=asyncio.get_running_loop().time)
        self._supervisors = [
            Supervisor(plan, infer, token, self, self._router, self.note) for plan in infer.replicas
        ]
        model = asyncio.get_running_loop().run_in_executor(None, read_model, infer.model, infer.engine)
        model.add_done_callback(_heard)
        self._duty = Duty(
            infer=infer,
            router=self._router,
            model=model,
            stop=self._stop,
            progress=self._progress,
            supervisors=tuple(self._supervisors),
            note=self.note,
        )

    # --- the hosts' programs ---

    async def listen(self) -> None:
        """Take the hosts' programs' connections from now on. Raises OSError where the port is taken."""
        launch = self._spec.launch
        self._server = await asyncio.start_server(
            self._visit, launch.master_addr, launch.master_port, limit=LINE_LIMIT
        )

    async def close(self) -> None:
        """End all connections; nothing is said on them any more."""
        if self._server is not None:
            self._server.close()
        for link in self._links.values():
            link.close()
        if self._visits:  # each ends with its connection; a loop that ends before them complains
            await asyncio.wait(self._visits, timeout=CLOSE_S)

    def tell(self, node: int, order: Any) -> None:
        if node in self._links and node not in self._gone:
            self._links[node].send(message(order))

    def address(self, node: int) -> str:
        return self._spec.peers[node].addr

    def is_gone(self, node: int) -> bool:
        return node in self._gone

    def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._welcome(reader, writer))
        self._visits.add(task)
        task.add_done_callback(self._visits.discard)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watch_peer(writer)
        known = await accept(reader, writer, self._token)
        node = known[1].get("node") if known else None
        if known is None or not isinstance(node, int) or not 0 <= node < len(self._spec.peers):
            writer.close()
            return
        if node in self._links:  # its program has ended and come again: what it had is lost
            writer.close()
            return
        self._links[node] = known[0]
        self._news.set()
        await self._read(node, known[0])

    async def _read(self, node: int, link: Link) -> None:
        with contextlib.suppress(IntegrityError):
            while (document := await link.receive()) is not None:
                self._report(parse(document))
        self._gone.add(node)
        self._news.set()
        link.close()
        for supervisor in self._supervisors:
            if supervisor.uses(node):
                supervisor.hear(HostGone(host=self._spec.peers[node].host))

    def _report(self, report: Any) -> None:
        if isinstance(report, Stopping):
            self._stop.ask(report.drain_s)
            return
        for supervisor in self._supervisors:
            if supervisor.index == report.replica:
                supervisor.hear(report)

    async def _hosts_are_here(self) -> None:
        """Raises DeadlineError, naming who did not report."""
        until = time.monotonic() + HOSTS_S
        while len(self._links) < len(self._spec.peers):
            self._news.clear()
            left = until - time.monotonic()
            if left <= 0:
                names = ", ".join(p.host for p in self._spec.peers if p.node_rank not in self._links)
                raise DeadlineError(f"{names} did not report within {HOSTS_S:g} s", stage="infer")
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(self._news.wait(), left)

    # --- the run ---

    async def run(self) -> int:
        """The whole run; its exit code. Every host has been told goodbye afterwards."""
        code = 1
        try:
            await self._hosts_are_here()
            code = await self._work()
        except LlmctlError as error:
            self.note(f"error: {error.line()}" + (f"; {error.hint}" if error.hint else ""))
        finally:
            await self._goodbye(code)
        return code

    async def _work(self) -> int:
        """The duty beside its replicas: the first to end decides; a dead replica alone does not."""
        duty = asyncio.ensure_future(self._do_duty())
        lives = [asyncio.ensure_future(one.keep()) for one in self._supervisors]
        try:
            left = set(lives)
            while not duty.done():
                await asyncio.wait({duty, *left}, return_when=asyncio.FIRST_COMPLETED)
                for life in [one for one in left if one.done()]:
                    left.discard(life)
                    self._lost(life, alone=not left)
            return duty.result()
        finally:
            await _cancel([duty, *lives])

    def _do_duty(self) -> Coroutine[Any, Any, int]:
        if self._infer.batch:
            return run_batch(self._duty)
        from llmctl.worker.infer.serve import run_serve  # needs aiohttp, which a batch does without

        return run_serve(self._duty)

    def _lost(self, life: asyncio.Task[None], *, alone: bool) -> None:
        """A replica was given up. Raises where it was the last one, or what it says is a bug."""
        error = life.exception()
        if error is None:
            return
        if not isinstance(error, JobFailedError):
            raise error
        self.note(f"{error.message}; it is given up")
        if alone:
            raise JobFailedError(f"no replica is left; {error.message}", hint=error.hint, stage="infer")

    async def _goodbye(self, code: int) -> None:
        for node, link in self._links.items():
            # Only the front's own host fails with it: another's code would be taken for a cause of its own.
            self.tell(node, Bye(code=0 if node else code))
            with contextlib.suppress(asyncio.TimeoutError):
                await bounded(link.drain(), 5.0)

    def note(self, text: str) -> None:
        """For people: in this rank's log, and in the run's metrics, which whoever follows it sees."""
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        sys.stdout.flush()
        self._progress.write(NoteLine(t=time.time(), text=text))


def _heard(model: asyncio.Future[Any]) -> None:
    """A run that ends before anybody asks for the model's text says why by itself, without a traceback."""
    if not model.cancelled():
        model.exception()


async def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
