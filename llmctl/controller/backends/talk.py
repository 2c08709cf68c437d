"""A conversation with one program on a host: a line of JSON each way, as long as both want to go on.

Writing to many hosts before reading from the first lets all of them work at once without a thread for each.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

from llmctl.controller.transport.base import READ, Completed, Stream
from llmctl.errors import DeadlineError
from llmctl.wire import codec

T = TypeVar("T")

WRITE_S = 15.0


class EndedError(Exception):
    """The program ended instead of answering; `done` says how."""

    def __init__(self, done: Completed) -> None:
        super().__init__()
        self.done = done


class Talk:
    """One such conversation; closing it ends the program, which sees the end of its stdin."""

    def __init__(self, stream: Stream, *, host: str, stage: str) -> None:
        self._stream = stream
        self._host = host
        self._stage = stage
        self._rest = b""

    def say(self, value: Any) -> None:
        """Send one document. Raises HostUnreachableError, DeadlineError, RemoteCommandError (it ended)."""
        self._stream.write(codec.dumps(value).encode() + b"\n", deadline_s=WRITE_S)

    def send(self, data: bytes, *, deadline_s: float) -> None:
        """Bytes that the last document announced. Raises as `say` does."""
        self._stream.write(data, deadline_s=deadline_s)

    def hear(self, kind: type[T], *, deadline_s: float) -> T:
        """The next document.

        Raises:
            EndedError: it ended first. DeadlineError, HostUnreachableError, IntegrityError.
        """
        until = time.monotonic() + deadline_s
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"no answer within {deadline_s:.0f} s", host=self._host, stage=self._stage
                )
            data = self._stream.read(READ, deadline_s=left)
            if not data:
                raise EndedError(self._stream.wait(deadline_s=WRITE_S))
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return codec.loads(kind, line)

    def close(self) -> None:
        self._stream.close()
