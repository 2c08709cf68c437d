"""`python -m llmctl.worker.infer.replica SPEC.json`: one rank of one replica, as the host program starts it.

The environment is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); rank 0 listens, and
the ready file tells where. SIGTERM: nothing new is taken, what is being worked on is answered, then it ends.
A rank that loses another one ends, too: a replica lives and dies as a whole.
"""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from llmctl.errors import ConfigError, LlmctlError
from llmctl.wire.codec import loads
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.infer import CANCEL, HandoffCheck, Order, ReplicaReady, ReplicaSpec, why_file
from llmctl.wire.model import count_parameters
from llmctl.worker.hf.weights import Weights, open_weights
from llmctl.worker.infer.engine.build import Built, build_rank, check_spec, limits_of, max_rows
from llmctl.worker.infer.engine.engine import Engine
from llmctl.worker.infer.engine.handoff import check_handoff
from llmctl.worker.infer.engine.links import Links
from llmctl.worker.infer.engine.pipeline import Alone, Leading, Pipeline
from llmctl.worker.infer.engine.place import Place
from llmctl.worker.infer.engine.scheduler import Told
from llmctl.worker.infer.readiness import announce, token_of
from llmctl.worker.infer.server import Connection, Door, Inbound
from llmctl.worker.process import HOPELESS
from llmctl.worker.stop import StopSignal

LISTEN_S = 0.2
"""How often an idle replica looks whether it was asked to stop."""

FAREWELL_S = 10.0
"""How long the last answers may take to be written."""


def main(arguments: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """The process: 0 after a drain. An error is one line on stderr and beside the ready file; exit code 93
    where starting again can't help."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        sys.stderr.write("usage: python -m llmctl.worker.infer.replica SPEC.json\n")
        return ExitCode.USAGE
    stop = StopSignal()
    stop.install()
    spec = loads(ReplicaSpec, Path(given[0]).read_bytes())
    try:
        run(spec, env, stop)
    except LlmctlError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        sys.stderr.flush()
        Path(why_file(spec.ready_file)).write_text(error.line())
        return ExitCode.NO_RETRY if isinstance(error, HOPELESS) else ExitCode.JOB_FAILED
    return ExitCode.OK


def run(spec: ReplicaSpec, env: Mapping[str, str], stop: StopSignal) -> None:
    """Be this rank until there is nothing more to do.

    Raises:
        LlmctlError: the model can't be loaded or shared that way, or another rank is gone.
    """
    check_spec(spec)
    started = time.monotonic()
    place = _place(spec, env)
    device = _device(spec, env)
    torch.set_num_threads(spec.threads or max(1, len(os.sched_getaffinity(0)) // spec.nproc))
    if place.world > 1:
        _join(spec, device)
    with open_weights(spec.model, base=spec.base) as weights:
        links = _links(spec, weights, place)
        built = build_rank(spec, weights, place, device, links)
        if place.rank > 0:
            built.rank.follow()
        else:
            _lead(spec, weights, built, links, env, stop, started)
    if place.world > 1:
        dist.destroy_process_group()


def _place(spec: ReplicaSpec, env: Mapping[str, str]) -> Place:
    place = Place(rank=int(env.get("RANK", "0")), tp=spec.tp, pp=spec.pp)
    world = int(env.get("WORLD_SIZE", "1"))
    if world != place.world:
        raise ConfigError(f"{world} ranks for tp {spec.tp} x pp {spec.pp}", stage="replica")
    return place


def _device(spec: ReplicaSpec, env: Mapping[str, str]) -> torch.device:
    if spec.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(env.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _join(spec: ReplicaSpec, device: torch.device) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=spec.pg_timeout_s))


def _links(spec: ReplicaSpec, weights: Weights, place: Place) -> Links | None:
    if place.world == 1:
        return None
    rows, dim = max_rows(spec), weights.config.dim
    return Links(place, max_rows=rows, dim=dim, timeout_s=spec.pg_timeout_s)


def _lead(
    spec: ReplicaSpec,
    weights: Weights,
    built: Built,
    links: Links | None,
    env: Mapping[str, str],
    stop: StopSignal,
    started: float,
) -> None:
    """Rank 0: check, listen, say so, serve."""
    pipeline: Pipeline = Alone(built.rank) if links is None else Leading(built.rank, links)
    check = None
    if spec.check:
        check = check_handoff(
            weights,
            pipeline,
            dtype=spec.dtype,
            length=spec.max_length,
            slots=spec.max_batch,
            rows=max_rows(spec),
        )
    door = Door(spec.listen, spec.port, token_of(env))
    ready = ReplicaReady(
        name=spec.name,
        host=spec.listen,
        port=door.port,
        pid=os.getpid(),
        vocab_size=weights.config.vocab_size,
        parameters=count_parameters(weights.config),
        max_batch=spec.max_batch,
        max_length=spec.max_length,
        dtype=spec.dtype,
        kernels=built.kernels,
        load_s=time.monotonic() - started,
        check=check,
    )
    door.open()
    announce(Path(spec.ready_file), ready)
    _say(ready, check)
    Serving(Engine(pipeline, limits_of(spec, weights.config)), door, stop, spec.pg_timeout_s / 4).run()


def _say(ready: ReplicaReady, check: HandoffCheck | None) -> None:
    told = "not checked" if check is None else f"within {check.difference:.2g} of one process"
    line = f"{ready.name}: {ready.dtype}, {ready.kernels} kernels, {told}, ready in {ready.load_s:.1f} s"
    sys.stdout.write(f"{line}; listening on {ready.host}:{ready.port}\n")
    sys.stdout.flush()


@dataclass(slots=True)
class Serving:
    """The loop of rank 0: orders in, steps, answers out.

    Attributes:
        silence_s: after so long without a step the other ranks get a sign of life.
    """

    engine: Engine
    door: Door
    stop: StopSignal
    silence_s: float

    def run(self) -> None:
        """Until a drain has ended."""
        spoken = time.monotonic()
        while True:
            self._take_orders()
            if self.stop.asked and not self.engine.draining:
                self._tell(self.engine.obey(None, Order(op="drain")))
            if not self.engine.idle:
                self._tell(self.engine.turn())
                spoken = time.monotonic()
            elif self.engine.draining:
                break
            elif time.monotonic() - spoken > self.silence_s:
                self.engine.alive()
                spoken = time.monotonic()
        self._leave()

    def _take_orders(self) -> None:
        """All that are there; when there is nothing else to do, wait a little for one."""
        try:
            inbound = self.door.inbox.get(timeout=LISTEN_S) if self._bored else self.door.inbox.get_nowait()
            while True:
                self._obey(inbound)
                inbound = self.door.inbox.get_nowait()
        except queue.Empty:
            return

    @property
    def _bored(self) -> bool:
        return self.engine.idle and not self.engine.draining

    def _obey(self, inbound: Inbound) -> None:
        connection, order = inbound.connection, inbound.order
        if order is None:
            self.door.connections.discard(connection)
            for name in list(connection.open):
                self._tell(self.engine.obey((connection, name), Order(op=CANCEL, id=name)))
            return
        if order.op == "add":
            if order.id in connection.open:
                return  # the first one will be answered; a second answer would be taken for its own
            connection.open.add(order.id)
        self._tell(self.engine.obey((connection, order.id), order))

    def _tell(self, answers: list[Told]) -> None:
        for key, answer in answers:
            assert isinstance(key, tuple)  # noqa: S101 - for the type checker
            connection: Connection = key[0]
            if answer.finish is not None:
                connection.open.discard(answer.id)
            connection.send(answer)

    def _leave(self) -> None:
        self.door.close()
        self.engine.end()
        until = time.monotonic() + FAREWELL_S
        for connection in list(self.door.connections):
            connection.finish(max(0.1, until - time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
