"""What tests of the inference engine share: an engine in this process, and replicas as real processes."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llmctl.wire.codec import dumps, loads
from llmctl.wire.infer import ADD, TOKEN, Answer, Order, ReplicaReady, ReplicaSpec, SamplingSpec
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.infer.engine.build import build_rank, limits_of
from llmctl.worker.infer.engine.engine import Engine
from llmctl.worker.infer.engine.pipeline import Alone, Rank
from llmctl.worker.infer.engine.place import Place
from tests.worker_kit import ROOT, free_port

DEADLINE_S = 240.0
SECRET = "a-token-of-the-tests"  # noqa: S105


def spec_of(model: Path, **changes: Any) -> ReplicaSpec:
    """A small replica in fp32."""
    small = ReplicaSpec(
        name="r", model=str(model), ready_file="", dtype="fp32", max_batch=4, max_length=96, device="cpu"
    )
    return replace(small, **{"pg_timeout_s": DEADLINE_S, "threads": 1, **changes})


def rank_of(model: Path, **changes: Any) -> Rank:
    """One process's whole model."""
    spec = spec_of(model, **changes)
    with open_weights(spec.model) as weights:
        return build_rank(spec, weights, Place(), torch.device("cpu"), None).rank


def engine_of(model: Path, **changes: Any) -> Engine:
    """An engine in this process."""
    spec = spec_of(model, **changes)
    rank = rank_of(model, **changes)
    return Engine(Alone(rank), limits_of(spec, rank.config))


def add(name: str, tokens: Iterable[int], task: str = "generate", **sampling: Any) -> Order:
    """An order for work."""
    return Order(
        op=ADD,
        id=name,
        task=task,
        tokens=tuple(tokens),
        sampling=SamplingSpec(**{"max_tokens": 8, **sampling}),
    )


@dataclass
class Told:
    """All answers to one order, together."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    last: Answer = field(default_factory=lambda: Answer(id=""))

    def take(self, answer: Answer) -> None:
        assert self.last.finish is None, "an answer after the last one"
        self.tokens += answer.tokens
        self.logprobs += answer.logprobs
        self.last = answer


def run_all(engine: Engine, orders: Iterable[Order]) -> dict[str, Told]:
    """What every order came to, all given at once."""
    found: dict[str, Told] = {}
    pending = [told for order in orders for told in engine.obey(order.id, order)]
    while pending or not engine.idle:
        for key, answer in pending:
            found.setdefault(str(key), Told()).take(answer)
        pending = engine.turn()
    return found


@dataclass
class Replica:
    """The processes of one replica, and a connection to it."""

    processes: list[subprocess.Popen[str]]
    ready: ReplicaReady

    def connect(self, token: str = SECRET) -> socket.socket:
        sock = socket.create_connection((self.ready.host, self.ready.port), timeout=DEADLINE_S)
        sock.sendall(token.encode() + b"\n")
        return sock

    def ask(self, orders: Iterable[Order]) -> dict[str, Told]:
        """What every order came to."""
        with self.connect() as sock, sock.makefile("rb") as lines:
            return ask(sock, lines, list(orders))

    def wait(self) -> list[int]:
        """Exit codes of all ranks."""
        return [process.wait(timeout=DEADLINE_S) for process in self.processes]


def ask(sock: socket.socket, lines: Any, orders: list[Order]) -> dict[str, Told]:
    """Send all orders, and read until each has its last answer."""
    sock.sendall(b"".join(dumps(order).encode() + b"\n" for order in orders))
    found = {order.id: Told() for order in orders}
    while any(told.last.finish is None for told in found.values()):
        answer = loads(Answer, lines.readline())
        found[answer.id].take(answer)
    return found


@contextmanager
def replica(folder: Path, model: Path, **changes: Any) -> Iterator[Replica]:
    """A replica that serves; its ranks are ended with the context."""
    spec = replace(spec_of(model, **changes), ready_file=str(folder / f"ready-{secrets.token_hex(4)}.json"))
    told = folder / "spec.json"
    told.write_text(dumps(replace(spec, nproc=spec.tp * spec.pp)))
    port, world = free_port(), spec.tp * spec.pp
    command = [sys.executable, "-W", "error", "-m", "llmctl.worker.infer.replica", str(told)]
    processes = [
        subprocess.Popen(
            command, env=rank_environment(rank, world, port), cwd="/", text=True, stderr=sys.stderr
        )
        for rank in range(world)
    ]
    try:
        yield Replica(processes, await_ready(Path(spec.ready_file), processes))
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=DEADLINE_S)


def await_ready(
    path: Path, processes: list[subprocess.Popen[str]], within: float = DEADLINE_S
) -> ReplicaReady:
    """The ready file, as soon as it is there."""
    until = time.monotonic() + within
    while not path.exists():
        assert time.monotonic() < until, "not ready"
        assert all(process.poll() is None for process in processes), "a rank has ended"
        time.sleep(0.05)
    return loads(ReplicaReady, path.read_text())


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME") if name in os.environ}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        TOKEN: SECRET,
    }
