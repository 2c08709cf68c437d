"""Encoder processes, one per worker, and their results in the order of the corpus.

Plain child processes that speak JSON lines: they share no state with this one (safe beside threads and
torch), need no importable `__main__`, and end by themselves when this process is killed.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import llmctl
from llmctl import errors
from llmctl.errors import DeadlineError, LlmctlError, TransferError
from llmctl.storage.corpus.encoder import Encoded, EncodeSetup, Fault, Reply
from llmctl.storage.corpus.sources import Unit
from llmctl.wire import codec

SILENT_S = 600.0
"""An encoder that says nothing for so long is stuck: it speaks after every batch."""

_AHEAD = 3
"""Units under way per worker: bounds what waits on disk for its turn."""


class EncoderPool:
    """Up to `workers` encoder processes, started when there is work for them."""

    def __init__(self, setup: EncodeSetup, workers: int) -> None:
        self._setup = setup
        self._window = workers * _AHEAD
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="llmctl-encode")
        self._own = threading.local()
        self._lock = threading.Lock()
        self.encoders: list[EncoderProcess] = []
        self._closing = False

    def __enter__(self) -> EncoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing = True
            for encoder in self.encoders:
                encoder.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for encoder in self.encoders:
            encoder.close()

    def run(self, units: Iterable[Unit]) -> Iterator[Encoded]:
        """Encode all units; results come in order, whoever finishes first.

        Raises:
            LlmctlError: that of the first unit, in order, that could not be encoded.
        """
        waiting: deque[Future[Encoded]] = deque()
        for unit in units:
            waiting.append(self._threads.submit(self._encode, unit))
            if len(waiting) >= self._window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, unit: Unit) -> Encoded:
        encoder: EncoderProcess | None = getattr(self._own, "encoder", None)
        if encoder is None:
            with self._lock:
                if self._closing:
                    raise TransferError("sharding was given up", stage="shard")
                encoder = self._own.encoder = EncoderProcess(self._setup, len(self.encoders))
                self.encoders.append(encoder)
        return encoder.encode(unit)


class EncoderProcess:
    """One child process; used by one thread, ended by any."""

    def __init__(self, setup: EncodeSetup, number: int) -> None:
        self._errors = Path(setup.folder, f"encoder-{number}.err")
        # Ours first, and not the current folder, which may hold a file called like a module.
        path = [str(Path(llmctl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONSAFEPATH": "1",
            # One core each; the default would start as many threads as there are cores in each of them.
            "TOKENIZERS_PARALLELISM": "false",
        }
        with self._errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llmctl.storage.corpus.encoder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        self.pid = self._process.pid
        self._buffer = b""
        # Sent with the first unit: a process that died at its start is then found by who waits for it.
        self._setup: str | None = codec.dumps(setup)

    def encode(self, unit: Unit) -> Encoded:
        """Send one unit, wait for its result.

        Raises:
            LlmctlError: the encoder's own error; it died; or it was silent for SILENT_S seconds.
        """
        if self._setup is not None:
            self._send(self._setup)
            self._setup = None
        self._send(codec.dumps(unit))
        while True:
            reply = codec.loads(Reply, self._line())
            if reply.fault is not None:
                raise _error(reply.fault)
            if reply.encoded is not None:
                return reply.encoded

    def end(self) -> None:
        """Kill it, if it is still there; what it was writing is of no use to anyone."""
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        """Close the pipes, once no thread waits on them any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What a dead process did not read any more is of no interest.
                with suppress(BrokenPipeError):
                    pipe.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        descriptor = self._process.stdout.fileno()
        end = time.monotonic() + SILENT_S
        while b"\n" not in self._buffer:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise DeadlineError(f"an encoder was silent for {SILENT_S:.0f} s", stage="shard")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise self._died()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self) -> LlmctlError:
        code = self._process.wait(10)
        said = self._errors.read_text(errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        last = f": {said[-1]}" if said else ""
        hint = "it may have run out of memory: try fewer workers" if code == -9 else None
        return TransferError(f"an encoder process ended early ({how}){last}", hint=hint, stage="shard")


def _error(fault: Fault) -> LlmctlError:
    kind = getattr(errors, fault.kind, LlmctlError)
    error = kind(fault.message, hint=fault.hint, stage=fault.stage)
    return error if isinstance(error, LlmctlError) else LlmctlError(fault.message)
