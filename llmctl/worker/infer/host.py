"""`python -m llmctl.worker.infer.host`: an inference run's one program per host, started by the node agent.

It starts and ends the ranks of replicas as the front orders; on node 0 the front runs in this same process.
It ends when the front says so, when the front is gone, or some time after a SIGTERM; its ranks before it.
Exit codes: 0 the run is over; 1 it failed; 93 starting again can't help; 143 stopped on request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from llmctl.errors import ConfigError, IntegrityError, LlmctlError
from llmctl.wire import environment
from llmctl.wire.codec import loads
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.layout import HostLayout, RunLayout
from llmctl.wire.records import StopRequest
from llmctl.wire.serving import InferSpec
from llmctl.wire.specs import NodeSpec
from llmctl.worker.infer.front import Front
from llmctl.worker.infer.link import Link, dial
from llmctl.worker.infer.orders import AskPort, Bye, End, Port, Report, Start, Stopping, message, parse
from llmctl.worker.infer.rankcommand import rank_command
from llmctl.worker.infer.ranks import Ranks, free_port
from llmctl.worker.process import HOPELESS

FIND_FRONT_S = 120.0
STOPPED = 128 + signal.SIGTERM
RANK_GRACE_S = 5.0


class HostProgram:
    """This host's side of the star: orders in, reports out."""

    def __init__(self, spec: NodeSpec, infer: InferSpec, folder: Path, link: Link) -> None:
        self._spec = spec
        self._infer = infer
        self._link = link
        self._orders: set[asyncio.Task[None]] = set()
        self._ranks = Ranks(folder, rank_command(spec, infer, folder), self._tell)
        self._stopping = asyncio.Event()
        self._drain_s = 0.0

    def stop(self) -> None:
        """SIGTERM: the front is told, and has the grace time to bring the run to an end."""
        self._drain_s = drain_seconds(self._spec)
        self._stopping.set()
        self._tell(Stopping(drain_s=self._drain_s))

    async def run(self) -> int:
        """Until the front says goodbye or is gone; the exit code."""
        orders = asyncio.ensure_future(self._follow_orders())
        patience = asyncio.ensure_future(self._patience())
        await asyncio.wait({orders, patience}, return_when=asyncio.FIRST_COMPLETED)
        patience.cancel()
        code = orders.result() if orders.done() else STOPPED
        orders.cancel()
        await self._ranks.end_all(grace_s=RANK_GRACE_S)
        await self._link.drain()
        return STOPPED if self._stopping.is_set() else code

    async def _patience(self) -> None:
        """Ends when a stop has waited for the front long enough."""
        await self._stopping.wait()
        await asyncio.sleep(self._drain_s + 1.0)

    async def _follow_orders(self) -> int:
        while (document := await self._link.receive()) is not None:
            order = parse(document)
            if isinstance(order, Bye):
                return order.code
            # Ending one replica may take seconds, in which others need starting.
            task = asyncio.ensure_future(self._obey(order))
            self._orders.add(task)
            task.add_done_callback(self._orders.discard)
        sys.stderr.write("error: the front is gone\n")
        return 1

    async def _obey(self, order: object) -> None:
        if isinstance(order, AskPort):
            port = free_port(self._spec.peers[self._spec.launch.node_rank].addr)
            self._tell(Port(replica=order.replica, generation=order.generation, port=port))
        elif isinstance(order, Start):
            await self._ranks.start(order)
        elif isinstance(order, End):
            await self._ranks.end(order.replica, order.generation)

    def _tell(self, report: Report) -> None:
        self._link.send(message(report))


def drain_seconds(spec: NodeSpec) -> float:
    """How long requests may go on after a stop was asked for: its grace less what ending itself needs."""
    request = HostLayout(spec.workdir).run(spec.run_id).stop_request
    try:
        grace = loads(StopRequest, Path(request).read_bytes()).grace_s
    except (OSError, IntegrityError):  # it came as a signal alone
        grace = spec.grace_s
    return max(0.0, grace - RANK_GRACE_S - 3.0)


async def run(spec: NodeSpec, infer: InferSpec, token: str, folder: Path) -> int:
    """Both programs of node 0, or this host's one; the exit code."""
    node = spec.launch.node_rank
    loop = asyncio.get_running_loop()
    if node:
        return await _host_side(spec, infer, token, folder)
    front = Front(spec, infer, token)
    await front.listen()
    work = asyncio.ensure_future(front.run())
    mine = asyncio.ensure_future(_host_side(spec, infer, token, folder))
    try:
        await asyncio.wait({work, mine}, return_when=asyncio.FIRST_COMPLETED)
        if mine.done():  # it only ends before the front where it has failed
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            return mine.result()
        code = work.result()
        await mine
        return code
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        await front.close()


async def _host_side(spec: NodeSpec, infer: InferSpec, token: str, folder: Path) -> int:
    launch = spec.launch
    hello = {"node": launch.node_rank, "host": spec.host}
    async with await dial(
        launch.master_addr, launch.master_port, token, hello, deadline_s=FIND_FRONT_S
    ) as link:
        program = HostProgram(spec, infer, folder, link)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, program.stop)
        return await program.run()


def main() -> int:
    """The process: exit code and error line."""
    try:
        run_dir, token = _environment()
        spec = loads(NodeSpec, Path(RunLayout(run_dir).node_spec).read_bytes())
        if spec.infer is None:
            raise ConfigError(f"{run_dir}: this is no inference run", hint="start this with `llmctl infer`")
        folder = Path(os.environ.get(environment.ATTEMPT_DIR, run_dir))
        return asyncio.run(run(spec, spec.infer, token, folder))
    except LlmctlError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        return ExitCode.NO_RETRY if isinstance(error, HOPELESS) else 1


def _environment() -> tuple[str, str]:
    found = [os.environ.get(name, "") for name in (environment.RUN_DIR, environment.INFER_TOKEN)]
    if not all(found):
        missing = f"{environment.RUN_DIR} and {environment.INFER_TOKEN}"
        raise ConfigError(f"{missing} are not set", hint="start this with `llmctl infer`")
    return found[0], found[1]


if __name__ == "__main__":
    sys.exit(main())
