"""Bytes that one thread produces and many senders read from the start, each at its own pace.

Held in memory up to a limit, then in a temporary file: compressing once for many hosts costs neither
time at the start nor memory without bound.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator

from llmctl.errors import LlmctlError, TransferError

_IN_MEMORY = 64 << 20
_CHUNK = 1 << 20


class Spool:
    """What `produce` yields, from a thread of its own. Close it when no reader is left."""

    def __init__(self, produce: Callable[[], Iterable[bytes]]) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed in close()
        self._changed = threading.Condition()
        self._size = 0
        self._done = False
        self._closed = False
        self._error: LlmctlError | None = None
        self._thread = threading.Thread(target=self._fill, args=(produce,), daemon=True)
        self._thread.start()

    def chunks(self) -> Iterator[bytes]:
        """All bytes from the start, as they come.

        Raises:
            LlmctlError: what the producer raised.
        """
        at = 0
        while chunk := self._next(at):
            at += len(chunk)
            yield chunk

    def close(self) -> None:
        """Stop producing and free the space."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._file.close()

    def _next(self, at: int) -> bytes:
        with self._changed:
            while self._size <= at and not self._done:
                self._changed.wait()
            if self._error:
                raise self._error
            self._file.seek(at)
            return self._file.read(_CHUNK)

    def _fill(self, produce: Callable[[], Iterable[bytes]]) -> None:
        try:
            for data in produce():
                with self._changed:
                    if self._closed:
                        break
                    self._file.seek(self._size)
                    self._file.write(data)
                    self._size += len(data)
                    self._changed.notify_all()
        except LlmctlError as error:
            self._error = error
        except OSError as error:
            self._error = TransferError(f"can't read what is to be sent: {error}", stage="push")
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()
