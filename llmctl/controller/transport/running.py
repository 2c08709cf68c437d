"""Run a `Stream` to its end: feed stdin, collect stdout, in the one way that both transports share."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from llmctl.controller.transport.base import READ, Completed, Stream
from llmctl.controller.transport.command import completed
from llmctl.controller.transport.deadline import Deadline
from llmctl.errors import LlmctlError, RemoteCommandError

_INLINE = 32 << 10
"""Input up to this size fits every pipe and window: no thread is needed to write it."""


def run_to_end(stream: Stream, stdin: bytes | Iterable[bytes], deadline: Deadline) -> Completed:
    """All of stdin in, all of stdout out; input that the command did not want is no error."""
    feeder = _Feeder(stream, stdin, deadline)
    chunks: list[bytes] = []
    while chunk := stream.read(READ, deadline_s=deadline.left):
        chunks.append(chunk)
    done = stream.wait(deadline_s=deadline.left)
    feeder.finish(deadline)
    return completed(done.code, b"".join(chunks), done.stderr)


class _Feeder:
    """Writes stdin, in a thread where it is more than a command surely takes before it answers."""

    def __init__(self, stream: Stream, stdin: bytes | Iterable[bytes], deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline
        self._error: LlmctlError | None = None
        self._thread: threading.Thread | None = None
        if isinstance(stdin, bytes) and len(stdin) <= _INLINE:
            self._feed([stdin])
        else:
            chunks = [stdin] if isinstance(stdin, bytes) else stdin
            self._thread = threading.Thread(target=self._feed, args=(chunks,), daemon=True)
            self._thread.start()

    def _feed(self, chunks: Iterable[bytes]) -> None:
        try:
            for chunk in chunks:
                if chunk:
                    self._stream.write(chunk, deadline_s=self._deadline.left)
            self._stream.end_input()
        except RemoteCommandError:
            return  # it ended without reading all of it: its exit status says whether that was right
        except LlmctlError as error:
            self._error = error

    def finish(self, deadline: Deadline) -> None:
        """The command has ended; a failed write that explains nothing else is raised now."""
        if self._thread:
            self._stream.close()  # unblocks a writer that nobody reads from any more
            self._thread.join(max(deadline.left, 1.0))
        if self._error:
            raise self._error
