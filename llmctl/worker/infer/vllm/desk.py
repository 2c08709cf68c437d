"""Orders of the front, each asked of vLLM by a thread of its own, and answered in the front's words.

vLLM decides who is worked on next; here is only counted. What breaks between here and vLLM is the end of the
replica: the front then starts its requests over elsewhere, which an error as an answer would forbid.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse

from llmctl.errors import IntegrityError, JobFailedError
from llmctl.wire.infer import (
    ADD,
    CANCEL,
    CANCELLED,
    DRAIN,
    EMBED,
    ERROR,
    SCORE,
    STATS,
    STOP,
    Answer,
    Order,
    ReplicaSpec,
    ReplicaStats,
)
from llmctl.worker.infer.admission import refusal
from llmctl.worker.infer.server import Connection, Door, Inbound
from llmctl.worker.infer.vllm.child import Channel, Child
from llmctl.worker.infer.vllm.requests import body, problem, scored, streamed
from llmctl.worker.stop import StopSignal

LISTEN_S = 0.2
"""How often vLLM's life and a stop are looked at."""
FAREWELL_S = 10.0
_EVENT = b"data:"
_LAST = b"[DONE]"


@dataclass(eq=False)
class Asked:
    """One order on its way through vLLM."""

    connection: Connection
    order: Order
    http: Channel
    cancelled: threading.Event = field(default_factory=threading.Event)
    sock: socket.socket | None = None

    def connect(self) -> None:
        """Kept by itself: the connection forgets its socket when the answer's head has come."""
        self.http.connect()
        self.sock = self.http.sock
        if self.cancelled.is_set():
            raise ConnectionAbortedError

    def cancel(self) -> None:
        """vLLM ends the work on what nobody listens to any more."""
        self.cancelled.set()
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has just ended by itself
                return


class Desk:
    """The loop of a replica that vLLM computes for."""

    def __init__(self, spec: ReplicaSpec, vocab: int, child: Child, door: Door, stop: StopSignal) -> None:
        self._spec, self._vocab = spec, vocab
        self._child, self._door, self._stop = child, door, stop
        self._open: dict[tuple[Connection, str], Asked] = {}
        self._lock = threading.Lock()
        self._broken: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._draining = False
        self._prompt_tokens = self._new_tokens = 0

    def run(self) -> None:
        """Until a drain has ended.

        Raises:
            JobFailedError: vLLM has ended or no longer answers.
        """
        while not (self._draining and not self._open):
            try:
                self._obey(self._door.inbox.get(timeout=LISTEN_S))
            except queue.Empty:
                self._child.check()
            self._draining = self._draining or self._stop.asked
            if not self._broken.empty():
                self._child.check()
                raise JobFailedError(f"vLLM broke off: {self._broken.get()}", stage="vllm")
        self._leave()

    def _obey(self, inbound: Inbound) -> None:
        connection, order = inbound.connection, inbound.order
        if order is None:
            self._door.connections.discard(connection)
            for key in [key for key in self._snapshot() if key[0] is connection]:
                self._cancel(key)
        elif order.op == CANCEL:
            self._cancel((connection, order.id))
        elif order.op == STATS:
            connection.send(Answer(id=order.id, stats=self._stats()))
        elif order.op == DRAIN:
            self._draining = True
        elif order.op == ADD and (connection, order.id) not in self._open:
            self._add(connection, order)

    def _add(self, connection: Connection, order: Order) -> None:
        answer = self._at_once(order)
        if answer is not None:
            connection.send(answer)
            return
        asked = Asked(connection, order, self._child.connection())
        with self._lock:
            self._open[connection, order.id] = asked
            self._prompt_tokens += len(order.tokens)
        threading.Thread(target=self._work, args=(asked,), name="vllm-request", daemon=True).start()

    def _at_once(self, order: Order) -> Answer | None:
        """The answer where vLLM need not be asked."""
        if order.task == EMBED:
            told = "vLLM as it was started here gives no embeddings; `engine: builtin` does"
            return Answer(id=order.id, finish=ERROR, error=told)
        refused = refusal(
            order,
            length=self._spec.max_length,
            vocab=self._vocab,
            waiting=max(0, len(self._open) - self._spec.max_batch),
            most_waiting=self._spec.max_waiting,
            draining=self._draining,
        )
        if refused is not None:
            return Answer(id=order.id, finish=ERROR, error=refused)
        if order.task == SCORE and len(order.tokens) == 1:
            return Answer(id=order.id, finish=STOP)
        return None

    def _cancel(self, key: tuple[Connection, str]) -> None:
        with self._lock:
            asked = self._open.get(key)
        if asked is not None:
            asked.cancel()

    def _snapshot(self) -> list[tuple[Connection, str]]:
        with self._lock:
            return list(self._open)

    def _stats(self) -> ReplicaStats:
        slots, there = self._spec.max_batch, len(self._open)
        running = min(slots, there)
        return ReplicaStats(
            slots=slots,
            free=slots - running,
            waiting=there - running,
            running=running,
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._new_tokens,
            steps=0,  # vLLM's own business
            draining=self._draining,
        )

    # --- in the order's own thread ---

    def _work(self, asked: Asked) -> None:
        try:
            for answer in self._answers(asked):
                self._tell(asked, answer)
                if answer.finish is not None:
                    return
            self._broke(asked, "a stream without an end")
        except (OSError, HTTPException, IntegrityError, ValueError) as error:
            self._broke(asked, f"{type(error).__name__}: {error}")
        finally:
            asked.http.close()

    def _answers(self, asked: Asked) -> Iterator[Answer]:
        asked.connect()
        response = self._child.ask(asked.http, body(asked.order, limit=self._spec.max_length))
        if response.status != 200:
            yield self._refused(asked.order, response)
        elif asked.order.task == SCORE:
            yield scored(asked.order, json.loads(response.read()))
        else:
            yield from (answer for answer in _events(asked.order, response) if answer is not None)

    def _refused(self, order: Order, response: HTTPResponse) -> Answer:
        """An answer that is none: the request's own fault, or vLLM's end. Raises OSError for that."""
        text = response.read().decode(errors="replace")
        if response.status >= 500 and not self._child.healthy():
            raise ConnectionError(f"status {response.status}: {text[:200]}")
        try:
            told = problem(json.loads(text))
        except (ValueError, AttributeError):
            told = text[:200]
        return Answer(id=order.id, finish=ERROR, error=f"vLLM: {told}")

    def _tell(self, asked: Asked, answer: Answer) -> None:
        if asked.cancelled.is_set():
            raise ConnectionAbortedError
        if answer.finish == ERROR and not self._child.healthy():
            raise ConnectionError(answer.error)
        self._new_tokens += len(answer.tokens)
        if answer.finish is not None:
            self._forget(asked)
        asked.connection.send(answer)

    def _broke(self, asked: Asked, why: str) -> None:
        if asked.cancelled.is_set():
            self._forget(asked)
            asked.connection.send(Answer(id=asked.order.id, finish=CANCELLED))
        else:
            self._broken.put(why)

    def _forget(self, asked: Asked) -> None:
        with self._lock:
            self._open.pop((asked.connection, asked.order.id), None)

    def _leave(self) -> None:
        self._door.close()
        until = time.monotonic() + FAREWELL_S
        for connection in list(self._door.connections):
            connection.finish(max(0.1, until - time.monotonic()))


def _events(order: Order, response: HTTPResponse) -> Iterator[Answer | None]:
    """A stream of server-sent events, up to its `[DONE]`."""
    while line := response.readline():
        if line.startswith(_EVENT):
            said = line.removeprefix(_EVENT).strip()
            if said == _LAST:
                return
            yield streamed(order, json.loads(said))
